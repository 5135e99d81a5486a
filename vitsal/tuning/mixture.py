"""Several data sets as one, in an order that follows from a seed; no label is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from vitsal.data.images import Batch, LabelledImages, Sample, named_batches
from vitsal.errors import UserError
from vitsal.jobs.identity import seed_of

HELD_OUT, LARGEST_SHARE = 400, 10  # images kept for the report; at most every tenth


class MixedImages(Dataset):
    """The images of several data sets, numbered through; some, drawn by a seed, are held out.

    Args:
        datasets: as `vitsal.open_data` returns them, with the target's transform.
        limit: number of images of each, spread evenly; None takes all.
        seed: of the order, and of which are held out.

    Raises:
        UserError: a stream, which cannot be shuffled, or fewer than two images.
    """

    streamed = False

    def __init__(self, datasets: Sequence[LabelledImages], limit: int | None = None, seed: int = 0) -> None:
        if streams := [dataset.source for dataset in datasets if dataset.streamed]:
            raise UserError(f"{streams[0]} is a stream, which cannot be shuffled: take its images into a folder first.")
        self.datasets, self.seed = datasets, seed
        self.places = [(dataset, number) for dataset in datasets for number in dataset.numbers(limit)]
        if len(self.places) < 2:
            raise UserError(f"There are {len(self.places)} images: too few to tune on some, and report on others.")
        order = self._shuffled(len(self.places), "order")
        count = min(HELD_OUT, -(-len(order) // LARGEST_SHARE))
        self.held_out, self.training = order[:count], order[count:]
        self._orders: dict[int, list[int]] = {}  # of the last pass that was asked about
        self.fingerprints = [dataset.fingerprint(dataset.keys(dataset.numbers(limit))) for dataset in datasets]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        dataset, number = self.places[index]
        return replace(dataset[number], index=index)

    def name(self, index: int) -> str:
        """What to call a sample."""
        dataset, number = self.places[index]
        return f"{dataset.source}: {dataset.name(number)}"

    def part(self, numbers: Sequence[int]) -> Subset:
        """These samples, in this order."""
        return Subset(self, numbers)

    def batches(
        self, numbers: Sequence[int], batch_size: int, num_workers: int = 0, *, progress: str = ""
    ) -> Iterator[Batch]:
        """These images, in this order, in batches; with a progress bar of this name, if one is given."""
        found = named_batches(self, numbers, batch_size, num_workers)
        total = -(-len(numbers) // batch_size)
        yield from tqdm(found, progress, total, unit="batch", mininterval=1, disable=not progress)

    def numbers_of(self, step: int, batch_size: int) -> list[int]:
        """The images of an optimizer step: each pass goes through all but those held out, in an order of its own."""
        passed, place = divmod(step, self.steps(batch_size))
        if passed not in self._orders:
            self._orders = {passed: self._shuffled(len(self.training), f"pass {passed}")}
        numbers = self._orders[passed][place * batch_size : (place + 1) * batch_size]
        return [self.training[number] for number in numbers]

    def steps(self, batch_size: int) -> int:
        """Batches of this size in one pass; one of all images where they are fewer."""
        return max(1, len(self.training) // batch_size)

    def _shuffled(self, count: int, what: str) -> list[int]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, what))
        return torch.randperm(count, generator=generator).tolist()
