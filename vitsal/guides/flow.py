"""Attention flow: the maximum flow from what a ViT reads to each patch, through the graph of its attention.

Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers" (arXiv:2005.00928), section 4: a node for each token
before and after each block, an edge from each token to every token that it reads, with its attention as the capacity.
Rollout multiplies shares along paths and adds them up; flow asks how much can pass at all: a narrow place bounds
everything behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy  # whose parts are imported when they are used: most guides need none
import torch
from torch import Tensor
from tqdm import tqdm

from vitsal.errors import UserError
from vitsal.guides.rollout import discard_lowest, readout_row

UNITS = 2**30  # a capacity of 1: scipy's solver is exact and takes 32-bit integers, so capacities are known to 1e-9


def attention_flow(
    fused: Sequence[Tensor], *, num_prefix_tokens: int = 1, discard_ratio: float = 0.0, readout: str = "class"
) -> Tensor:
    """Attention flow of each image: L matrices (B, N, N) -> saliency (B, P), raw, exact to about 1e-7.

    One maximum flow per patch, by scipy: seconds for an image, where rollout takes milliseconds. A bar counts patches
    as soon as that takes more than two seconds.

    Args:
        fused, num_prefix_tokens, discard_ratio, readout: as in `vitsal.guides.attention_rollout`.

    Returns:
        (B, P): the largest flow, at most 1, from the readout to each patch. Unlike rollout's contributions they do not
        sum to 1: each patch's flow is found as if it were the only one.

    Raises:
        UserError: no matrices, unknown readout, discard ratio outside [0, 1).

    Example:
        >>> uniform = torch.full((1, 3, 3), 1 / 3)
        >>> attention_flow([uniform])  # one block: what rollout gives
        tensor([[0.1667, 0.1667]])
    """
    if len(fused) == 0:
        raise UserError("Flow needs the attention of at least one block; got none.")
    kept = [with_residual(discard_lowest(attention, discard_ratio, num_prefix_tokens > 0)) for attention in fused]
    start = readout_row(kept[-1], num_prefix_tokens, readout)
    num_images, num_tokens = start.shape
    patches = range(num_prefix_tokens, num_tokens)
    flow = torch.zeros(num_images, len(patches))
    told = {"desc": "attention flow", "unit": "patch", "mininterval": 1, "delay": 2}
    with tqdm(total=flow.numel(), leave=False, position=0, **told) as bar:  # in the line of a bar around it
        for image in range(num_images):
            graph = flow_graph([attention[image] for attention in kept], start[image])
            source = graph.shape[0] - 1
            for column, sink in enumerate(patches):
                flow[image, column] = scipy.sparse.csgraph.maximum_flow(graph, source, sink).flow_value / UNITS
                bar.update()
    return flow.to(start)


def with_residual(fused: Tensor) -> Tensor:
    """(A + I) / row sums, the attention with the residual connection: (B, N, N) -> (B, N, N), rows summing to 1."""
    whole = fused + torch.eye(fused.shape[-1], device=fused.device, dtype=fused.dtype)
    return whole / whole.sum(dim=-1, keepdim=True)


def flow_graph(attentions: Sequence[Tensor], start: Tensor) -> scipy.sparse.csr_array:
    """The layered graph of one image, capacities in units of 1 / UNITS.

    Args:
        attentions: L matrices (N, N) with the residual connection, first block first.
        start: weights of the tokens that are read, (N,).

    Returns:
        ((L + 1) N + 1, same): node l * N + i is token i after l blocks, the last node is the source. Reverse edges are
        there with capacity 0, which spares the solver from adding them for each patch.
    """
    num_tokens = len(start)
    source = (len(attentions) + 1) * num_tokens
    read = np.flatnonzero(start.cpu())
    tails, heads = [np.full(len(read), source)], [len(attentions) * num_tokens + read]
    capacities = [start.cpu().double().numpy()[read]]
    for block, attention in enumerate(attentions):
        matrix = attention.detach().cpu().double().numpy()
        if block == len(attentions) - 1:  # of the last block, only what is read matters
            matrix = np.where(start.cpu().numpy()[:, None] > 0, matrix, 0)
        reader, token = np.nonzero(matrix)
        tails.append((block + 1) * num_tokens + reader)
        heads.append(block * num_tokens + token)
        capacities.append(matrix[reader, token])
    tail, head = np.concatenate(tails), np.concatenate(heads)
    units = np.rint(UNITS * np.concatenate(capacities)).astype(np.int32)
    both = np.concatenate([units, np.zeros_like(units)]), (np.r_[tail, head], np.r_[head, tail])
    return scipy.sparse.csr_array(both, shape=(source + 1, source + 1))
