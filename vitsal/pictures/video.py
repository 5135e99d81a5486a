"""Heat maps over a video, frame by frame: resumed after a kill, in memory that does not grow with its length."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from vitsal.choices import SEGMENT, WIDEST
from vitsal.errors import UserError, check_file, check_number, suggestion
from vitsal.jobs.files import check_folder, locked, read_json, write_whole
from vitsal.jobs.identity import describe, file_hash, question_hash, refuse_other
from vitsal.jobs.paths import check_output
from vitsal.pictures import video_files
from vitsal.pictures.overlays import Column, draw_frames

JOB = "settings.json"
GIF_WIDTH = 480  # pixels


def draw_on_video(
    source: str | Path,
    output: str | Path,
    columns: Mapping[str, Column],
    *,
    strength: float = 0.7,
    width: int | None = None,
    names: bool = True,
    batch_size: int = 8,
    progress: bool = True,
) -> Path:
    """Draw the columns' maps over every frame of a video, panels in one row, with its sound and timing; gives `output`.

    The whole video is decoded once before anything is drawn, so that damage is known at the start. Frames are drawn in
    parts of 128 in the folder `<output>.parts`; killed and started again, it goes on after the last whole part, and
    gives the same frames; a part that was damaged, or is of another job, is drawn again. At the end the parts and the
    source's sound are put together without coding them again. Subtitles are left out. Of an odd number of rows or
    columns of pixels the last is left out.

    Args:
        source: anything that FFmpeg decodes.
        output: a file named .mp4, .mov or .mkv; or .gif, for slides: no sound, about 10 frames a second.
        columns: name -> column, from left to right.
        strength, names: see `draw_frames`.
        width: most pixels that all panels together are wide; None keeps the frames' size, in a GIF 480 pixels.
        batch_size: frames that a guide sees at once.
        progress: show progress bars, of the check and of the drawing.

    Raises:
        UserError: no such file, no video or a damaged one, an output that cannot be written so, no column, a number out
            of range, a parts folder that another job has left, or another run that draws the same output.
    """
    source, output = Path(source), Path(output)
    _check_request(source, output, columns, strength, width, batch_size)
    film = video_files.inspect_video(source, progress)
    video_files.check_sound(film, output)
    every, width = (film.every(video_files.GIF_RATE), width or GIF_WIDTH) if video_files.is_gif(output) else (1, width)
    draw = partial(draw_frames, columns=columns, strength=strength, names=names)
    size = _panel_size(film, draw, width)
    options = {"strength": strength, "names": names, "size": size, "every": every, "batch_size": batch_size}
    parts = output.with_name(f"{output.name}.parts")
    job = _job(source, columns, options)
    _check_claim(parts, job)
    with locked(parts / "drawing", busy=f"Another run is drawing {output}. Wait for it, or name another output."):
        write_whole(parts / JOB, lambda path: path.write_text(json.dumps(job, indent=2)))
        video_files.assemble(film, _draw_parts(film, parts, partial(draw, size=size), job, progress), output)
        shutil.rmtree(parts)
    return output


def _check_request(
    source: Path, output: Path, columns: Mapping[str, Column], strength: float, width: int | None, batch_size: int
) -> None:
    check_file("video", source)
    if output.suffix.lower() not in video_files.FORMATS:
        near = suggestion(output.suffix.lower(), video_files.FORMATS)
        raise UserError(f"{output}: the output's name must end with one of {', '.join(video_files.FORMATS)}.{near}")
    check_output(output, source)
    if not columns:
        raise UserError("There is no column to draw; name one guide at least.")
    check_number("strength of the heat map", strength, 0, 1 + 1e-9, open_end="high")
    if width is not None:
        check_number("width in pixels", width, 0, WIDEST, open_end="low")
    check_number("batch size", batch_size, 0, SEGMENT, open_end="low")


def _panel_size(film: video_files.Film, draw: Callable[..., np.ndarray], width: int | None) -> tuple[int, int]:
    """(h, w) of a panel, even; the first frame is drawn to see how many panels there are."""
    _, frame = next(video_files.pictures_of(film))
    panels = draw([video_files.to_array(frame, film)]).shape[2] // film.width
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
    """What parts must have in common to be put together."""
    state = source.stat()
    return {
        "source": {"bytes": state.st_size, "modified": state.st_mtime_ns},
        "columns": [[name, describe(column)] for name, column in columns.items()],
        "versions": {"av": av.__version__, "part": f"{SEGMENT} frames, {video_files.ENCODER}"},
        **options,
    }


def _check_claim(parts: Path, job: Mapping[str, object]) -> None:
    """Raise UserError if a folder of parts is for something else than this job; it is left alone."""
    check_folder(parts)
    settings = parts / JOB
    known = (f"{JOB}*", ".drawing.lock")
    if settings.exists() or (parts.exists() and any(not any(map(path.match, known)) for path in parts.iterdir())):
        what, advice = f"{parts} holds another job's parts", "Delete it, or name another output."
        refuse_other(read_json(settings, f"So {what}, or damaged ones. {advice}"), job, what, advice)


def _draw_parts(
    film: video_files.Film, parts: Path, draw: Callable[..., np.ndarray], job: Mapping[str, object], progress: bool
) -> list[Path]:
    """Write the parts that are not there yet, or are not whole; returns all, in order."""
    pictures = islice(video_files.pictures_of(film), 0, None, job["every"])
    total, paths = -(-film.frames // job["every"]), []
    with tqdm(desc="video", total=total, unit="frame", mininterval=1, disable=not progress) as bar:
        for number in range(-(-total // SEGMENT)):
            segment = islice(pictures, SEGMENT)
            path = _whole_part(parts, number, job)
            if path:
                bar.update(sum(1 for _ in segment))
            else:
                unsealed = parts / f"{number:06d}.unsealed"
                video_files.encode(unsealed, film, _drawn(film, segment, draw, job["batch_size"], bar))
                path = unsealed.replace(parts / f"{number:06d}-{_seal(unsealed, number, job)}.nut")
            paths.append(path)
    return paths


def _whole_part(parts: Path, number: int, job: Mapping[str, object]) -> Path | None:
    """The part of this number, if it is there with the seal that its name tells; others are removed, with a word."""
    whole = None
    for path in sorted(parts.glob(f"{number:06d}-*.nut")):
        if path.stem == f"{number:06d}-{_seal(path, number, job)}":
            whole = path
        else:
            warnings.warn(f"{path} is damaged, or a part of something else, and is drawn again.", stacklevel=4)
            path.unlink()
    return whole


def _seal(path: Path, number: int, job: Mapping[str, object]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of job, number and content: what a part is, and that it is whole."""
    return file_hash(path, f"{question_hash(job)} {number} ")


def _drawn(
    film: video_files.Film, segment: Iterator[tuple], draw: Callable[..., np.ndarray], batch_size: int, bar: tqdm
) -> Iterator[tuple[int, np.ndarray]]:
    """Ticks and what is drawn, batch by batch, of a segment's ticks and frames."""
    arrays = ((tick, video_files.to_array(frame, film)) for tick, frame in segment)
    while batch := list(islice(arrays, batch_size)):
        ticks, frames = zip(*batch, strict=True)
        yield from zip(ticks, draw(frames), strict=True)
        bar.update(len(batch))
