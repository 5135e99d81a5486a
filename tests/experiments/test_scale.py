"""The engine at real size: equal tables whoever computes them, nothing twice, and costs in proportion."""

import os
import signal
import time
from multiprocessing import get_context

import pytest
from helpers import in_two_processes

from vitsal.experiments.scale import cheap_images, cheap_target, real_size_cost


def test_the_target_is_cheap_and_always_the_same():
    first, second = cheap_target(), cheap_target()
    assert sum(parameter.numel() for parameter in first.parameters()) == 6_858
    image = cheap_images(5, first)[3].image[None]
    assert first(image).tolist() == second(image).tolist()


@pytest.mark.slow
def test_known_answers_are_the_same_and_cost_no_more_than_a_part(tmp_path):
    table = real_size_cost([600, 2_400], tmp_path)
    costs = table.set_index(["samples", "task"])
    for samples in (600, 2_400):
        computed, known = (costs.loc[samples, task] for task in ("drop curve", "the same, from its journal"))
        assert computed.crc32 == known.crc32
    assert known.seconds < computed.seconds / 2  # of the larger one: of tenths of a second a busy machine makes more
    assert len(set(table.crc32)) == 4
    assert costs.loc[2_400, "drop curve"].us_per_sample < 3 * costs.loc[600, "drop curve"].us_per_sample


@pytest.mark.slow
def test_killed_five_times_it_ends_with_the_same_table(tmp_path):
    """Two processes, SIGKILL whenever 400 more samples are known; then one process to the end."""
    real_size_cost([3_000], tmp_path / "undisturbed")
    folder = tmp_path / "disturbed" / "3000"

    def lines():
        return sum(path.read_bytes().count(b"\n") for path in folder.glob("outcomes-*.jsonl"))

    def work():
        os.setsid()  # a group of its own, which is killed as one
        in_two_processes(real_size_cost, [3_000], tmp_path / "disturbed")

    for _ in range(5):
        enough = lines() + 1
        run = get_context("fork").Process(target=work)
        run.start()
        deadline = time.monotonic() + 120
        while lines() < enough and time.monotonic() < deadline:
            assert run.exitcode is None
            time.sleep(0.005)
        os.killpg(run.pid, signal.SIGKILL)
        run.join()
        assert not (folder / "table.csv").exists()
    real_size_cost([3_000], tmp_path / "disturbed")
    tables = [tmp_path / name / "3000" / "table.csv" for name in ("disturbed", "undisturbed")]
    assert tables[0].read_bytes() == tables[1].read_bytes()
