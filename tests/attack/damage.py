"""Ways to damage a file, each by a seeded generator, so that the same damage is done every time."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

Damage = Callable[[Path, random.Random], None]


def flip_bit(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def change_digit(path: Path, rng: random.Random) -> None:
    """Another digit in place of one: what stays readable, and is the worst to notice."""
    content = bytearray(path.read_bytes())
    place = rng.choice([index for index, byte in enumerate(content) if 48 <= byte < 58] or [0])
    content[place] = 48 + (content[place] - 48 + rng.randrange(1, 10)) % 10
    path.write_bytes(content)


def cut(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(1, path.stat().st_size)])


def zero_block(path: Path, rng: random.Random) -> None:
    """What some file systems leave after a power cut."""
    content = path.read_bytes()
    start = rng.randrange(len(content))
    block = content[start : start + 64]
    path.write_bytes(content[:start] + bytes(len(block)) + content[start + 64 :])


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def put_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def put_foreign(path: Path, rng: random.Random) -> None:
    """Another file that lies near in its place, one of its own kind if there is one."""
    files = sorted(file for file in path.parent.parent.rglob("*") if file.is_file() and file != path)
    alike = [file for file in files if file.suffix == path.suffix]
    path.write_bytes(rng.choice(alike or files).read_bytes() if files else b"my notes\n")


def _lines(change: Callable[[list[bytes], random.Random], None]) -> Damage:
    """A damage of a text's lines, the first of which is a heading."""

    def damage(path: Path, rng: random.Random) -> None:
        first, *lines = path.read_bytes().splitlines(keepends=True)
        change(lines, rng)
        path.write_bytes(b"".join([first, *lines]))

    damage.__name__ = change.__name__
    return damage


@_lines
def swap_lines(lines: list[bytes], rng: random.Random) -> None:
    one, other = rng.sample(range(len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]


@_lines
def drop_line(lines: list[bytes], rng: random.Random) -> None:
    del lines[rng.randrange(len(lines))]


@_lines
def double_line(lines: list[bytes], rng: random.Random) -> None:
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))


def add_foreign(path: Path, rng: random.Random) -> None:
    """A line of another journal among its own."""
    first, *lines = path.read_bytes().splitlines(keepends=True)
    (other,) = path.parent.glob("other/*.jsonl")
    lines.insert(rng.randrange(len(lines)), rng.choice(other.read_bytes().splitlines(keepends=True)[1:]))
    path.write_bytes(b"".join([first, *lines]))


@_lines
def shorten_line(lines: list[bytes], rng: random.Random) -> None:
    number = rng.randrange(len(lines))
    lines[number] = lines[number][: rng.randrange(len(lines[number]) - 1)] + b"\n"


@_lines
def break_line(lines: list[bytes], rng: random.Random) -> None:
    number = rng.randrange(len(lines))
    place = rng.randrange(len(lines[number]))
    lines[number] = lines[number][:place] + b"\n" + lines[number][place:]


@_lines
def swap_cells(lines: list[bytes], rng: random.Random) -> None:
    """Two cells of one line, or the same cell of two lines, of a table."""
    one, other = rng.choice([rng.sample(range(len(lines)), 2), [rng.randrange(len(lines))] * 2])
    cells = {number: lines[number].split(b",") for number in (one, other)}
    here = rng.randrange(len(cells[one]))
    there = here if one != other else rng.randrange(len(cells[one]))
    cells[one][here], cells[other][there] = cells[other][there], cells[one][here]
    for number, parts in cells.items():
        lines[number] = b",".join(parts)


def _numbers(value: object) -> Iterator[tuple[object, object]]:
    """All whole numbers in a JSON value: the list or dictionary that holds one, and where it does."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if type(part) is int:
            yield value, key
        yield from _numbers(part)


def _json(change: Callable[[list[tuple], random.Random], None]) -> Damage:
    """A damage of the whole numbers in one line of JSON, which stays JSON."""

    def damage(lines: list[bytes], rng: random.Random) -> None:
        number = rng.randrange(len(lines))
        seal, brace, text = lines[number].partition(b"{")
        record = json.loads(brace + text)
        change(list(_numbers(record)), rng)
        lines[number] = seal + json.dumps(record).encode() + b"\n"

    damage.__name__ = change.__name__
    return _lines(damage)


@_json
def swap_values(places: list[tuple], rng: random.Random) -> None:
    (one, here), (other, there) = rng.sample(places, 2)
    one[here], other[there] = other[there], one[here]


@_json
def out_of_range(places: list[tuple], rng: random.Random) -> None:
    holder, key = rng.choice(places)
    holder[key] = rng.choice([-1, -2, -3, 999, 2**31, 2**63, 10**12])


@_json
def other_type(places: list[tuple], rng: random.Random) -> None:
    holder, key = rng.choice(places)
    holder[key] = rng.choice([None, "1", 1.5, True, [], {}, float("nan")])


BYTES = {flip_bit: 5, cut: 3, zero_block: 2, empty: 1, put_folder: 1, put_foreign: 2}
JOURNAL = BYTES | {
    flip_bit: 18, change_digit: 14, cut: 10, zero_block: 4, put_foreign: 2, swap_lines: 6, drop_line: 6, double_line: 6,
    shorten_line: 6, break_line: 6, add_foreign: 6, swap_values: 10, out_of_range: 8, other_type: 6,
}  # fmt: skip
TABLE = BYTES | {
    flip_bit: 10, change_digit: 8, swap_cells: 8, swap_lines: 1, drop_line: 1, double_line: 2, break_line: 2,
    shorten_line: 2,
}  # fmt: skip
SETTINGS = {flip_bit: 6, cut: 3, zero_block: 2, empty: 1, put_folder: 1, put_foreign: 1}
HEADLINES = {cut: 3, zero_block: 3, empty: 1, put_folder: 1, put_foreign: 1}  # its numbers are whatever they are
