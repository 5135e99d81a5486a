"""Attention flow, against networkx and against graphs whose flow is found by hand."""

import networkx
import pytest
import torch
from helpers import assert_close

from vitsal.errors import UserError
from vitsal.guides import FlowGuide
from vitsal.guides.attention import record_attention
from vitsal.guides.flow import attention_flow, with_residual
from vitsal.guides.rollout import attention_rollout, fuse_heads


def reference_flow(fused, num_prefix_tokens, readout):
    """Flow of one image by networkx, in Python's own numbers; fused are L lists [N][N] with the residual connection."""
    graph, tokens = networkx.DiGraph(), range(len(fused[0]))
    for block, matrix in enumerate(fused):
        for i in tokens:
            for j in tokens:
                graph.add_edge((block + 1, i), (block, j), capacity=matrix[i][j])
    read = [0] if readout == "class" else list(tokens)[num_prefix_tokens:]
    for token in read:
        graph.add_edge("source", (len(fused), token), capacity=1 / len(read))
    return [networkx.maximum_flow_value(graph, "source", (0, j)) for j in list(tokens)[num_prefix_tokens:]]


@pytest.mark.parametrize("seed", range(20))
def test_random_layered_graphs_against_networkx(seed):
    generator = torch.Generator().manual_seed(seed)
    num_tokens, num_blocks, num_prefix_tokens = 5 + seed % 4, 2 + seed % 3, seed % 3
    readout = "class" if num_prefix_tokens and seed % 2 else "patches"
    scores = 3 * torch.randn(num_blocks, 2, num_tokens, num_tokens, generator=generator)
    fused = list(scores.softmax(dim=-1))
    flow = attention_flow(fused, num_prefix_tokens=num_prefix_tokens, readout=readout)
    for image in range(2):
        matrices = [with_residual(attention)[image].double().tolist() for attention in fused]
        expected = reference_flow(matrices, num_prefix_tokens, readout)
        assert flow[image].tolist() == pytest.approx(expected, rel=1e-6)


def test_one_block_is_rollout():
    fused = [torch.randn(3, 6, 6).softmax(dim=-1)]
    assert_close(attention_flow(fused), attention_rollout(fused), 1e-7)


def test_two_blocks_by_hand():
    """A token that is read by 0.5 passes at most that on, whatever it reads itself; rollout passes the product."""
    first = torch.tensor([[[1.0, 0, 0], [0, 0, 1.0], [0, 0, 1.0]]])  # token 1 reads token 2
    second = torch.tensor([[[0, 1.0, 0], [0, 1.0, 0], [0, 0, 1.0]]])  # the class token reads token 1
    # with the residual: class 0.5 + token 1 0.5; of token 1's 0.5, 0.5 may go to 1 and 0.5 to 2, one at a time
    assert_close(attention_flow([first, second]), [[0.5, 0.5]], 1e-7)
    assert_close(attention_rollout([first, second]), [[0.25, 0.25]], 1e-7)


def test_flow_is_never_less_than_rollout():
    """What rollout carries along all paths is a flow too; the largest is at least as large."""
    fused = list((2 * torch.randn(4, 2, 9, 9)).softmax(dim=-1))
    flow, rollout = attention_flow(fused), attention_rollout(fused)
    assert (flow >= rollout - 1e-6).all()
    assert (flow - rollout).max() > 0.01
    assert flow.max() <= 1


def test_discarded_attention_does_not_flow():
    fused = list((2 * torch.randn(3, 1, 6, 6)).softmax(dim=-1))
    assert not torch.allclose(attention_flow(fused), attention_flow(fused, discard_ratio=0.8))


def test_docstring_example():
    assert_close(attention_flow([torch.full((1, 3, 3), 1 / 3)]), [[1 / 6, 1 / 6]], 1e-7)


def test_bad_input():
    with pytest.raises(UserError, match="Flow needs the attention of at least one block"):
        attention_flow([])
    with pytest.raises(UserError, match="discard ratio must lie in"):
        attention_flow([torch.full((1, 3, 3), 1 / 3)], discard_ratio=1)
    with pytest.raises(UserError, match="Unknown head fusion"):
        FlowGuide(None, "maxx")


@torch.no_grad()
def test_guide_is_the_flow_of_the_recorded_maps(tiny_vit, images):
    with record_attention(tiny_vit) as maps:
        tiny_vit(images)
    expected = attention_flow([fuse_heads(attention, "max") for attention in maps], discard_ratio=0.5)
    assert_close(FlowGuide(tiny_vit, "max", 0.5)(images).flatten(1), expected)


def test_batch_equals_single_images(tiny_vit, images):
    guide = FlowGuide(tiny_vit)
    together = guide(images[:2])
    assert torch.equal(together[1], guide(images[1:2])[0])
