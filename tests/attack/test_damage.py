"""State files that were damaged: whoever goes on with them gets what was there before, or a refusal that names them."""

import random
import shutil
import warnings

import pytest
from entry import outcome
from states import STATES

from vitsal.errors import UserError


@pytest.fixture(scope="session", params=STATES)
def state(request, tmp_path_factory):
    """A state, the folder that it was made in, and what is right to come of it."""
    chosen = STATES[request.param]
    folder = tmp_path_factory.mktemp("state")
    chosen.make(folder / "made")
    shutil.copytree(folder / "made", folder / "whole")
    return chosen, folder, chosen.again(folder / "whole")


def damages():
    """Each damage of each state: how often it is done."""
    return [count for state in STATES.values() for kinds in state.files.values() for count in kinds.values()]


def test_there_are_many():
    assert sum(damages()) >= 200


def goes_wrong(state, folder, damaged, right):
    """What is wrong with the answer to a damaged file; '' where nothing is."""
    found = []

    def go_on():
        try:
            found.append(state.again(folder))
        except (UserError, OSError) as error:  # of the system's own errors the command line makes a sentence
            found.append(error)

    ended = outcome(go_on)
    if ended != 0:
        return f"ended with {ended}"
    (answer,) = found
    if isinstance(answer, Exception):
        named = any(part in str(answer) for part in (damaged.name, damaged.parent.name, str(folder)))
        return "" if named else f"does not name the file: {answer}"
    return "" if answer == right else "another result, and no word of it"


@pytest.mark.slow
def test_damaged_state_is_noticed(state, tmp_path):
    chosen, folder, right = state
    wrong = []
    for pattern, kinds in chosen.files.items():
        for damage, count in kinds.items():
            for seed in range(count):
                copy = tmp_path / "copy"
                shutil.copytree(folder / "made", copy)
                (path,) = copy.glob(pattern)
                damage(path, random.Random(f"{pattern} {damage.__name__} {seed}"))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    if problem := goes_wrong(chosen, copy, path, right):
                        wrong.append(f"{pattern}: {damage.__name__} {seed} -> {problem}")
                shutil.rmtree(copy)
    assert not wrong, f"{len(wrong)} damages:\n" + "\n".join(wrong)
