"""Recording attention: the right numbers, from a model that is as it was afterwards."""

import pytest
import torch
from helpers import assert_close, randomise, traces

from vitsal.guides.attention import AttentionNotRecorded, fused_attention, record_attention
from vitsal.guides.rollout import fuse_heads
from vitsal.models.loading import load_model


def attention_by_hand(module, tokens):
    """softmax(q k^T / sqrt(d)) of each head, from the weights: (B, N, C) -> (B, H, N, N), float64."""
    weight, bias = module.qkv.weight.double(), module.qkv.bias.double()
    queries, keys, _ = (tokens.double() @ weight.T + bias).chunk(3, dim=-1)
    maps = []
    for head in range(module.num_heads):
        part = slice(head * module.head_dim, (head + 1) * module.head_dim)
        scores = queries[..., part] @ keys[..., part].transpose(1, 2) / module.head_dim**0.5
        maps.append(scores.exp() / scores.exp().sum(dim=-1, keepdim=True))
    return torch.stack(maps, dim=1)


def test_maps_equal_those_by_hand(tiny_vit, images):
    tokens = []
    for block in tiny_vit.blocks:
        block.attn.register_forward_pre_hook(lambda module, args: tokens.append(args[0].detach()))
    with record_attention(tiny_vit) as maps:
        tiny_vit(images)
    assert len(maps) == 3
    for block, before, attention in zip(tiny_vit.blocks, tokens, maps, strict=True):
        assert attention.std() > 0.02  # far from uniform, so that the comparison says something
        assert_close(attention, attention_by_hand(block.attn, before))


def test_logits_are_those_of_the_fused_model(tiny_vit, images):
    untouched = tiny_vit(images)
    with record_attention(tiny_vit):
        assert_close(tiny_vit(images), untouched)


@pytest.mark.parametrize("blocks", [[-1], [0, 2], [2, 0]])
def test_chosen_blocks(tiny_vit, images, blocks):
    with record_attention(tiny_vit) as all_maps:
        tiny_vit(images)
    with record_attention(tiny_vit, blocks=blocks) as maps:
        tiny_vit(images)
    expected = [all_maps[2]] if blocks == [-1] else [all_maps[0], all_maps[2]]  # first block first, always
    assert len(maps) == len(expected)
    for ours, theirs in zip(maps, expected, strict=True):
        assert_close(ours, theirs)


def test_fused_as_they_are_recorded(tiny_vit, images):
    with record_attention(tiny_vit) as maps:
        tiny_vit(images)
    with record_attention(tiny_vit, lambda attention: fuse_heads(attention, "max")) as fused:
        tiny_vit(images)
    for attention, matrix in zip(maps, fused, strict=True):
        assert_close(matrix, attention.max(dim=1).values, 0)


def test_second_forward_replaces_the_first(tiny_vit, images):
    with record_attention(tiny_vit) as expected:
        tiny_vit(images[:1])
    with record_attention(tiny_vit) as maps:
        tiny_vit(images[1:])
        tiny_vit(images[:1])
    assert len(maps) == 3
    assert torch.equal(maps[0], expected[0])


def test_nothing_left_behind(tiny_vit, images):
    tiny_vit.blocks[1].attn.fused_attn = False  # each block gets its own flag back
    before = traces(tiny_vit)
    with record_attention(tiny_vit, with_gradient=True) as maps:
        assert traces(tiny_vit) != before
        torch.autograd.grad(tiny_vit(images).sum(), maps)
    assert traces(tiny_vit) == before
    assert all(parameter.grad is None for parameter in tiny_vit.parameters())


def test_nothing_left_behind_after_an_exception(tiny_vit, images):
    def fail():
        with record_attention(tiny_vit):
            tiny_vit(images)
            raise ZeroDivisionError

    before = traces(tiny_vit)
    with pytest.raises(ZeroDivisionError):
        fail()
    assert traces(tiny_vit) == before


def test_detached_unless_the_gradient_is_wanted(tiny_vit, images):
    with record_attention(tiny_vit) as maps:
        tiny_vit(images)
    assert not any(attention.requires_grad for attention in maps)


def logit_gradients(model, images):
    with record_attention(model, with_gradient=True) as maps:
        return torch.autograd.grad(model(images)[:, 3].sum(), maps)


def test_gradient_equals_finite_differences(tiny_vit, images):
    """Move one entry of one block's attention a little, and see what the logit does, in float64."""
    model, image, step = tiny_vit.double(), images[:1].double(), 1e-5
    gradients = logit_gradients(model, image)
    for block, head, row, column in [(0, 1, 0, 5), (1, 2, 4, 0), (1, 0, 7, 7), (2, 0, 0, 9)]:
        module, logits = model.blocks[block].attn, []
        for change in (-step, step):

            def move(_, args, attention, change=change):
                attention = attention.clone()
                attention[0, head, row, column] += change  # noqa: B023  (used at once)
                return attention

            handle = module.attn_drop.register_forward_hook(move)
            with fused_attention([module], False):
                logits.append(model(image)[0, 3].item())
            handle.remove()
        slope = (logits[1] - logits[0]) / (2 * step)
        assert abs(slope) > 1e-6
        assert gradients[block][0, head, row, column].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_gradient_with_frozen_parameters(tiny_vit, images):
    expected = logit_gradients(tiny_vit, images)
    frozen = logit_gradients(tiny_vit.requires_grad_(False), images)
    for ours, theirs in zip(frozen, expected, strict=True):
        assert ours.abs().max() > 0
        assert_close(ours, theirs)


def test_under_autocast(tiny_vit, images):
    with record_attention(tiny_vit, fuse_heads) as expected:
        tiny_vit(images)
    with torch.autocast("cpu", torch.bfloat16), record_attention(tiny_vit, fuse_heads) as fused:
        tiny_vit(images)
    for ours, theirs in zip(fused, expected, strict=True):
        assert ours.dtype == torch.float32
        assert_close(ours, theirs, 0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(tiny_vit, images, dtype):
    with record_attention(tiny_vit, fuse_heads) as expected:
        tiny_vit(images)
    with (
        torch.autocast("cuda", dtype, enabled=dtype != torch.float32),
        record_attention(tiny_vit.cuda(), fuse_heads) as fused,
    ):
        tiny_vit(images.cuda())
    for ours, theirs in zip(fused, expected, strict=True):
        assert_close(ours.cpu(), theirs, 1e-3 if dtype == torch.float32 else 0.05)


def test_model_that_was_not_run(tiny_vit):
    with (
        pytest.raises(AttentionNotRecorded, match=r"Recorded 0 attention maps of blocks \[0, 1, 2\]"),
        record_attention(tiny_vit),
    ):
        pass


def test_block_with_parallel_attention():
    model = randomise(load_model("vit_small_patch16_18x2_224", pretrained=False, img_size=64, depth=1))
    message = r"Block 0 of .* is a ParallelThingsBlock with 2 attention modules"
    with pytest.raises(AttentionNotRecorded, match=message), record_attention(model):
        model(torch.zeros(1, 3, 64, 64))
    assert not model.patch_embed._forward_pre_hooks
