"""Heat maps over a video, frame by frame: resumed after a kill, in memory that does not grow with its length."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from vitsal.errors import UserError, check_number, suggestion
from vitsal.files import check_folder, check_output, write_whole
from vitsal.identity import describe, differences
from vitsal.video_files import (
    ENCODER,
    FORMATS,
    GIF_RATE,
    Film,
    assemble,
    check_sound,
    encode,
    inspect_video,
    is_gif,
    pictures_of,
    to_array,
)
from vitsal.video_panels import Column, draw_frames

SEGMENT = 128  # frames per part: what a kill may cost
WIDEST = 16384  # pixels, as libx264 takes them
GIF_WIDTH = 480  # pixels


def draw_on_video(
    source: str | Path,
    output: str | Path,
    columns: Mapping[str, Column],
    *,
    strength: float = 0.6,
    width: int | None = None,
    names: bool = True,
    batch_size: int = 8,
    progress: bool = True,
) -> Path:
    """Draw the columns' maps over every frame of a video, panels in one row; sound and timing are kept.

    The whole video is decoded once before anything is drawn, so that damage is known at the start. Frames are drawn in
    parts of 128 in the folder `<output>.parts`; killed and started again, it goes on after the last whole part, and
    gives the same frames. At the end the parts and the source's sound are put together without coding them again.
    Subtitles are left out. Of an odd number of rows or columns of pixels the last is left out.

    Args:
        source: anything that FFmpeg decodes.
        output: a file named .mp4, .mov or .mkv; or .gif, for slides: no sound, about 10 frames a second.
        columns: name -> column, from left to right.
        strength, names: see `draw_frames`.
        width: most pixels that all panels together are wide; None keeps the frames' size, in a GIF 480 pixels.
        batch_size: frames that a guide sees at once.
        progress: show progress bars, of the check and of the drawing.

    Returns:
        `output`.

    Raises:
        UserError: no such file, no video or a damaged one, an output that cannot be written so, no column, a number out
            of range, or a parts folder that another job has left.
    """
    source, output = Path(source), Path(output)
    _check_request(source, output, columns, strength, width, batch_size)
    film = inspect_video(source, progress)
    check_sound(film, output)
    every, width = (film.every(GIF_RATE), width or GIF_WIDTH) if is_gif(output) else (1, width)
    draw = partial(draw_frames, columns=columns, strength=strength, names=names)
    size = _panel_size(film, draw, width)
    options = {"strength": strength, "names": names, "size": size, "every": every, "batch_size": batch_size}
    parts = output.with_name(f"{output.name}.parts")
    _claim(parts, _job(source, columns, options))
    _draw_parts(film, parts, partial(draw, size=size), every, batch_size, progress)
    assemble(film, parts, output)
    return output


def _check_request(
    source: Path, output: Path, columns: Mapping[str, Column], strength: float, width: int | None, batch_size: int
) -> None:
    if not source.is_file():
        raise UserError(f"There is no video file at {source}.")
    if output.suffix.lower() not in FORMATS:
        near = suggestion(output.suffix.lower(), FORMATS)
        raise UserError(f"{output}: the output's name must end with one of {', '.join(FORMATS)}.{near}")
    check_output(output, source)
    if not columns:
        raise UserError("There is no column to draw; name one guide at least.")
    check_number("strength of the heat map", strength, 0, 1 + 1e-9, open_end="high")
    if width is not None:
        check_number("width in pixels", width, 0, WIDEST, open_end="low")
    check_number("batch size", batch_size, 0, SEGMENT, open_end="low")


def _panel_size(film: Film, draw: Callable[..., np.ndarray], width: int | None) -> tuple[int, int]:
    """(h, w) of a panel, even; the first frame is drawn to see how many panels there are."""
    frame = next(pictures_of(film))[1]
    panels = draw([to_array(frame, film)]).shape[2] // film.width
    height, own = film.height, film.width
    if width and panels * own > width:
        own = max(2, width // panels // 2 * 2)
        height = max(2, round(film.height * own / film.width / 2) * 2)
    if panels * own > WIDEST:
        raise UserError(
            f"{panels} panels of {own} pixels make {panels * own}, and a video can be {WIDEST} pixels wide at most; "
            "name a smaller width, or fewer columns."
        )
    return height, own


def _job(source: Path, columns: Mapping[str, Column], options: Mapping[str, object]) -> dict[str, object]:
    """What parts must have in common to be put together, as JSON gives it back."""
    state = source.stat()
    job = {
        "source": {"bytes": state.st_size, "modified": state.st_mtime_ns},
        "columns": [[name, describe(column)] for name, column in columns.items()],
        "versions": {"av": av.__version__, "part": f"{SEGMENT} frames, {ENCODER}"},
        **options,
    }
    return json.loads(json.dumps(job))


def _claim(parts: Path, job: Mapping[str, object]) -> None:
    """Note in the folder of parts what it is for.

    Raises:
        UserError: it is for something else; it is left alone.
    """
    check_folder(parts)
    settings = parts / "settings.json"
    if settings.exists() or (parts.exists() and any(not path.match("settings.json*") for path in parts.iterdir())):
        try:
            unlike = differences(json.loads(settings.read_text()), job)
        except (OSError, ValueError, AttributeError):
            unlike = "its settings.json cannot be read"
        if unlike:
            raise UserError(f"{parts} holds another job's parts ({unlike}). Delete it, or name another output.")
    write_whole(settings, lambda path: path.write_text(json.dumps(job, indent=2)))


def _draw_parts(
    film: Film,
    parts: Path,
    draw: Callable[[Sequence[np.ndarray]], np.ndarray],
    every: int,
    batch_size: int,
    progress: bool,
) -> None:
    """Write the parts that are not there yet."""
    pictures = islice(pictures_of(film), 0, None, every)
    total = -(-film.frames // every)
    with tqdm(desc="video", total=total, unit="frame", mininterval=1, disable=not progress) as bar:
        for first in range(0, total, SEGMENT):
            path, segment = parts / f"{first // SEGMENT:06d}.nut", islice(pictures, SEGMENT)
            if path.exists():
                bar.update(sum(1 for _ in segment))
            else:
                drawn = _drawn(film, segment, draw, batch_size, bar)
                write_whole(path, partial(encode, film=film, pictures=drawn))


def _drawn(
    film: Film,
    segment: Iterator[tuple[int, av.VideoFrame]],
    draw: Callable[[Sequence[np.ndarray]], np.ndarray],
    batch_size: int,
    bar: tqdm,
) -> Iterator[tuple[int, np.ndarray]]:
    """Ticks and what is drawn, batch by batch."""
    arrays = ((tick, to_array(frame, film)) for tick, frame in segment)
    while batch := list(islice(arrays, batch_size)):
        ticks, frames = zip(*batch, strict=True)
        yield from zip(ticks, draw(frames), strict=True)
        bar.update(len(batch))
