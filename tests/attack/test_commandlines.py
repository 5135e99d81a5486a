"""Hundreds of bad command lines through the real entry point: exit status 2, a sentence, and nothing written."""

import shutil

import pytest
import typer
from entry import changes, restore, shown, snapshot, vitsal
from values import BAD, BASE, LATE
from workplace import furnish

from vitsal import cli
from vitsal.experiments import acceleration

COMMANDS = {"": typer.main.get_command(cli.app), **typer.main.get_command(cli.app).commands}
PARAMETERS = {(command, parameter.name): parameter for command in COMMANDS for parameter in COMMANDS[command].params}


@pytest.fixture(autouse=True)
def _few_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all ways to reduce a target a few: to count the operations of each takes longer than a refusal may."""
    monkeypatch.setattr(acceleration, "RATIOS", (0.7, 0.5))
    monkeypatch.setattr(acceleration, "FINE", (0.5,))
    monkeypatch.setattr(acceleration, "SIDES", (12 / 14, 10 / 14))
    for shares in ("LATE", "ALONE"):
        monkeypatch.setattr(acceleration, shares, (0.3, 0.8))


@pytest.fixture(scope="session")
def furnished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workplace")
    furnish(folder)
    return folder


@pytest.fixture
def workplace(furnished, monkeypatch):
    """The current folder; what a command writes there is removed again."""
    monkeypatch.chdir(furnished)
    return furnished


def words_for(command, values):
    """The command line with these values: options by name, then arguments in their order."""
    words, arguments = [command], []
    for name, value in values.items():
        parameter = PARAMETERS[command, name]
        if parameter.param_type_name == "argument":
            arguments += value if isinstance(value, tuple) else (value,) if value or name != "name" else ()
        elif value is None:
            words.append(parameter.opts[0])
        else:
            flag = bool(parameter.secondary_opts)
            words += [f"{parameter.opts[0]}={value}"] if flag else [parameter.opts[0], value]
    return [*words, *arguments] if command else words[1:]


def bad_lines(command):
    """Every bad command line of a command, and the option that is bad in it."""
    for name, values in BAD[command].items():
        for value in values if not isinstance(values, str) else ():
            change = value if isinstance(value, dict) else {name: value}
            yield words_for(command, BASE[command] | change)


def test_every_option_has_its_bad_values():
    """A new option without an entry fails here, and so does an entry whose option is gone."""
    assert {(command, name) for command in BAD for name in BAD[command]} == set(PARAMETERS)
    assert all(values for options in BAD.values() for values in options.values())
    assert sum(1 for command in BAD for _ in bad_lines(command)) >= 500


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in BASE if command not in ("", "run")])
def test_the_command_line_itself_is_fine(workplace, command):
    """Otherwise it would be refused whatever the option that is tried; notebooks have tests of their own."""
    answer = vitsal(words_for(command, BASE[command]))
    shutil.rmtree("new", ignore_errors=True)
    assert (answer.code, answer.out != "") == (0, True), answer


@pytest.mark.slow
@pytest.mark.parametrize("command", filter(None, BAD))
def test_bad_command_lines_are_refused(workplace, command):
    before, wrong = snapshot(workplace), []
    for words in bad_lines(command):
        problem = vitsal(words).refusal
        if touched := changes(before, snapshot(workplace)):
            inputs = touched if LATE.isdisjoint(words) else [name for name in touched if f"{workplace}/new" not in name]
            problem += f" wrote {', '.join(inputs)[:200]}" if inputs else ""
            restore(before, touched)
        if problem:
            wrong.append(f"{shown(words)} -> {problem}")
    assert not wrong, f"{len(wrong)} bad command lines:\n" + "\n".join(wrong)
