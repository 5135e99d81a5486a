"""Saliency judged against masks, on cases worked out by hand."""

import pytest
import torch
from helpers import assert_close

from vitsal.analysis.localization import mask_energy, pointing_game


def test_pointing_game_by_hand():
    saliency = torch.tensor([[[0.1, 0.7], [0.2, 0.0]], [[0.9, 0.7], [0.2, 0.0]]])
    mask = torch.tensor([[[False, True], [False, False]]]).expand(2, -1, -1)
    assert pointing_game(saliency, mask).tolist() == [True, False]


def test_mask_energy_by_hand():
    saliency = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.5, 0.5], [0.5, 0.5]]])
    mask = torch.tensor([[[True, False], [False, True]]]).expand(2, -1, -1)
    assert_close(mask_energy(saliency, mask), [0.5, 0.5])
    assert_close(mask_energy(saliency, mask[:, :1].expand(2, 2, 2)), [0.4, 0.5])
    assert_close(mask_energy(10 * saliency, mask), mask_energy(saliency, mask))


@pytest.mark.parametrize("covered", [0, 1, 5, 16])
def test_flat_map_reaches_the_share_of_the_mask(covered):
    mask = (torch.arange(16) < covered).view(1, 4, 4)
    assert mask_energy(torch.ones(1, 4, 4), mask).item() == covered / 16
