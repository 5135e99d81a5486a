"""What holds of any input: ranking, spreading, splitting into processes and shards, reading words."""

from itertools import islice

import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard, IterableDatasetShard
from helpers import MadeImages
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch.utils.data import BatchSampler

from vitsal.cli.options import parse_image_size, parse_ratios, parse_value
from vitsal.data.images import IndexedImages, StreamedImages, batches
from vitsal.data.pictures import spread
from vitsal.errors import UserError
from vitsal.reduction.keep import num_kept, top_k_patches

PICTURE = Image.new("RGB", (1, 1))
quick = settings(max_examples=40, derandomize=True, deadline=None, database=None)
ratios = st.floats(0, 1, exclude_min=True)
maps = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40, unique=True)
texts = st.text(max_size=60) | st.text("[](){}:,.'\"\\+-*0123456789ejinfa_ \0\n", max_size=60)


@quick
@given(maps, ratios, st.randoms(use_true_random=False))
def test_ranking_follows_the_patches_wherever_they_lie(values, ratio, rng):
    order = rng.sample(range(len(values)), len(values))
    kept = top_k_patches(torch.tensor([values]), ratio)[0].tolist()
    moved = top_k_patches(torch.tensor([[values[index] for index in order]]), ratio)[0].tolist()
    assert sorted(order[index] for index in moved) == kept


@quick
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40), ratios, ratios)
def test_the_kept_are_as_many_as_asked_ascending_and_part_of_those_of_a_larger_ratio(values, one, other):
    fewer, more = (top_k_patches(torch.tensor([values]), ratio)[0].tolist() for ratio in sorted([one, other]))
    assert len(more) == num_kept(len(values), max(one, other))
    assert more == sorted(set(more))
    assert set(fewer) <= set(more)
    assert min(values[index] for index in more) >= max(
        [values[i] for i in set(range(len(values))) - set(more)], default=0
    )


@quick
@given(st.integers(0, 10**6), st.none() | st.integers(1, 3000))
def test_spread_takes_that_many_in_order_and_evenly(length, limit):
    length = min(length, 5000) if limit is None else length
    chosen = spread(length, limit)
    assert len(chosen) == (length if limit is None else min(length, limit))
    steps = np.diff([*chosen, length])
    assert not len(steps) or (chosen[0] == 0 and steps.min() >= 1 and steps.max() - steps.min() <= 1)


@quick
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5))
def test_processes_share_indexed_samples_each_exactly_once(length, size, processes):
    """As accelerate shares batches out; what it repeats to fill the last round is dropped when it gathers."""
    sampler = BatchSampler(range(length), size, drop_last=False)
    shares = [list(BatchSamplerShard(sampler, processes, number)) for number in range(processes)]
    assert len({len(share) for share in shares}) == 1
    rounds = [index for step in zip(*shares, strict=True) for batch in step for index in batch]
    assert rounds[:length] == list(range(length))


@quick
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5))
def test_processes_share_a_stream_each_sample_exactly_once(length, size, processes):
    stream = StreamedImages([(None, label) for label in range(length)])
    shards = [IterableDatasetShard(stream, size, num_processes=processes, process_index=n) for n in range(processes)]
    shares = [[sample.index for sample in shard] for shard in shards]
    rounds = zip(*[[share[i : i + size] for i in range(0, len(share), size)] for share in shares], strict=True)
    assert [index for step in rounds for batch in step for index in batch][:length] == list(range(length))


@quick
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 45), st.none() | st.integers(1, 45), st.integers(0, 39))
def test_batches_account_for_each_sample_exactly_once(length, size, first, limit, broken):
    """Going on after `first`, in shards of batches, whatever of it is broken."""
    read = [("none.png" if index == broken else PICTURE, index) for index in range(length)]
    dataset = IndexedImages(MadeImages(read.__getitem__, length), lambda image: torch.zeros(3, 1, 1))
    parts = iter(batches(dataset, size, first=first, limit=limit))
    shards = iter(lambda: list(islice(parts, 2)), [])
    found = [name for shard in shards for batch in shard for name in [*batch.names, *batch.skipped]]
    assert sorted(found, key=int) == [str(index) for index in spread(length, limit)[first:]]


@quick
@given(texts)
def test_any_word_is_a_value_or_is_refused(text):
    for read in (parse_value, parse_ratios, parse_image_size):
        try:
            value = read(text)
        except UserError:
            continue
        if read is parse_ratios:
            assert value
            assert all(0 < ratio <= 1 for ratio in value)
        if read is parse_image_size:
            assert min(value) > 0


@quick
@given(st.lists(ratios, min_size=1, max_size=8))
def test_ratios_are_read_as_they_are_written(values):
    assert parse_ratios(", ".join(map(repr, values))) == list(dict.fromkeys(values))
