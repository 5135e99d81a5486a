"""Video files: decoding every frame or saying where it is damaged, writing parts, putting parts and sound together."""

from __future__ import annotations

import heapq
import io
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer, OutputContainer
from av.stream import Disposition
from av.video.reformatter import Colorspace
from IPython import display
from PIL import Image
from tqdm import tqdm

from vitsal.data.pictures import spread
from vitsal.errors import UserError
from vitsal.pictures.overlays import resized

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".gif": "gif"}
ENCODER = "libx264" if "libx264" in av.codecs_available else "mpeg4"
PART = "nut"  # read as this and nothing else: playlists, say, refer to other files
GIF_RATE = 10  # frames per second
SAMPLES = 48_000  # of a sound, per second
TIMED_FORMATS = ("mp4", "matroska", "avi")  # their headers tell how long the video is
MISSING_SECONDS = 0.25  # a video that ends so much before its header's duration is cut short
BT709 = 1  # the number of this colour space in H.273; also of "limited range"


@dataclass(frozen=True)
class Film:
    """What is known of a video that was decoded from its first frame to its last."""

    path: Path
    frames: int
    rate: Fraction  # frames per second
    time_base: Fraction  # seconds per tick
    height: int  # of a frame as it is shown, even
    width: int
    sound: tuple[str, ...]  # codecs of its audio tracks

    @property
    def step(self) -> int:
        """Ticks from a frame to the next, in the mean."""
        return max(1, round(1 / (self.rate * self.time_base)))

    def every(self, rate: int) -> int:
        """Take every n-th frame to have about `rate` of them a second."""
        return max(1, round(self.rate / rate))


@contextmanager
def _opened(path: Path, kind: str | None = None) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """A file and its video stream; of a kind, such as a part's, or of whatever it looks like; a cover is no video."""
    try:
        container = av.open(str(path), format=kind, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        reason = _reason(error)
        raise UserError(f"{path} cannot be read as a video: {reason}. It may be damaged or cut short.") from error
    with container:
        moving = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not moving or not moving[0].codec_context or not moving[0].width:
            kinds = ", ".join(stream.type for stream in container.streams) or "nothing"
            raise UserError(f"{path} has no video stream that can be decoded; it holds: {kinds}.")
        moving[0].thread_type = "AUTO"
        yield container, moving[0]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _decoded(path: Path, kind: str | None = None) -> Iterator[av.VideoFrame]:
    """All frames of a video as they are shown; UserError if one is damaged, or the file ends before its header says."""
    number, shown, reached = 0, Fraction(0), Fraction(0)
    with _opened(path, kind) as (container, video):
        try:
            for packet in container.demux(video, *container.streams.audio):
                reached = max(reached, _end(packet))
                if packet.is_corrupt:
                    raise av.InvalidDataError(0, "a packet is damaged or cut short")
                for frame in packet.decode() if packet.stream is video else ():
                    if frame.is_corrupt:
                        raise av.InvalidDataError(0, "the picture is damaged")
                    yield frame
                    number, shown = number + 1, frame.time or shown
        except av.FFmpegError as error:
            raise _damage(path, number, shown, _reason(error)) from error
        promised = _promised_seconds(container)
    if number == 0 or promised - reached > MISSING_SECONDS:
        raise _damage(path, number, shown, f"it ends there, and its header promises {float(promised):.2f} s")


def _end(packet: av.Packet) -> Fraction:
    """When a packet's content is over, in seconds."""
    start = packet.dts if packet.pts is None else packet.pts
    return Fraction(0) if start is None else (start + (packet.duration or 0)) * packet.time_base


def _promised_seconds(container: InputContainer) -> Fraction:
    """How far the times in a file go, by its header; 0 where it does not tell."""
    known = container.duration and any(name in container.format.name for name in TIMED_FORMATS)
    return Fraction(container.duration + (container.start_time or 0), av.time_base) if known else Fraction(0)


def _damage(path: Path, number: int, seconds: Fraction | float, reason: str) -> UserError:
    return UserError(
        f"{path} is damaged after frame {number}, at {float(seconds):.2f} s: {reason}. Nothing was written. Repair or "
        "cut the video first, for example with `ffmpeg -i in.mp4 -t SECONDS -c copy out.mp4`."
    )


def inspect_video(path: Path, progress: bool) -> Film:
    """Decode the whole video once; UserError if it cannot be read, or is damaged."""
    with _opened(path) as (container, video):
        rate = video.average_rate or video.guessed_rate or Fraction(25)
        sound = tuple(stream.codec.canonical_name for stream in container.streams.audio)
        expected, time_base = video.frames or None, video.time_base
    frames = iter(tqdm(_decoded(path), "check", expected, unit="frame", mininterval=1, disable=not progress))
    height, width, _ = _upright(next(frames)).shape
    return Film(path, 1 + sum(1 for _ in frames), rate, time_base, height, width, sound)


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """The picture turned as a player would, telephones film sideways; its sides made even."""
    turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return np.ascontiguousarray(turned[: turned.shape[0] // 2 * 2, : turned.shape[1] // 2 * 2])


def check_sound(film: Film, output: Path) -> None:
    """Raise UserError if the output's kind of file cannot hold the video's sound as it is."""
    if is_gif(output):
        return
    with av.open(io.BytesIO(), "w", format=FORMATS[output.suffix.lower()]) as container:
        unfit = sorted(set(film.sound) - container.supported_codecs)
    if unfit:
        raise UserError(
            f"A {output.suffix} file cannot hold the sound of {film.path} as it is ({', '.join(unfit)}); "
            f"write to {output.with_suffix('.mkv')}."
        )


def pictures_of(film: Film) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames with the ticks at which they are shown, which grow, whatever the file says."""
    last = None
    for frame in _decoded(film.path):
        late = frame.pts is None or (last is not None and frame.pts <= last)
        last = frame.pts if not late else 0 if last is None else last + film.step
        yield last, frame


def to_array(frame: av.VideoFrame, film: Film) -> np.ndarray:
    """A frame as it is shown, (H, W, 3) in uint8; one of another size than the first is brought to it."""
    return resized(_upright(frame), (film.height, film.width))


def encode(path: Path, film: Film, pictures: Iterable[tuple[int, np.ndarray]]) -> None:
    """Write one part. Without B-frames packets leave the encoder in the order of the frames."""
    ticks: deque[int] = deque()
    with av.open(str(path), "w", format=PART) as container:
        stream = None
        for tick, picture in pictures:
            stream = stream or _add_video(container, film, picture.shape)
            ticks.append(tick)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            _mux(container, stream.encode(frame), ticks, film.time_base)
        _mux(container, stream.encode(), ticks, film.time_base)


def _add_video(container: OutputContainer, film: Film, shape: tuple[int, ...]) -> av.VideoStream:
    # libx264 looks ahead unless it is tuned so, and then one film in fifty differs in a bit
    own = {"crf": "18", "preset": "veryfast", "tune": "zerolatency"}
    quality = own if ENCODER == "libx264" else {"qmin": "2", "qmax": "4"}
    stream = container.add_stream(ENCODER, rate=film.rate.limit_denominator(1001), options=quality | {"bf": "0"})
    stream.height, stream.width, stream.pix_fmt = *shape[:2], "yuv420p"
    stream.time_base = film.time_base
    context = stream.codec_context
    context.thread_count = 1  # the same film each time it is drawn
    context.flags |= Flags.global_header
    context.colorspace = context.color_primaries = context.color_trc = context.color_range = BT709
    return stream


def _mux(container: OutputContainer, packets: Iterable[av.Packet], ticks: deque[int], time_base: Fraction) -> None:
    """Write packets with the source's times in place of the encoder's."""
    for packet in packets:
        packet.time_base = time_base
        packet.pts = packet.dts = ticks.popleft()
        container.mux(packet)


def assemble(film: Film, paths: Sequence[Path], output: Path) -> None:
    """Put parts, in this order, together as the output."""
    whole = paths[0].with_name(f"whole{output.suffix.lower()}")
    (_write_gif if is_gif(output) else _remux)(film, paths, whole)
    os.replace(whole, output)


def _remux(film: Film, paths: Sequence[Path], whole: Path) -> None:
    kind = FORMATS[whole.suffix]
    index_first = {} if kind == "matroska" else {"movflags": "+faststart"}
    with av.open(str(whole), "w", format=kind, options=index_first) as target, _opened(film.path) as (source, _):
        with av.open(str(paths[0]), format=PART) as part:
            video = target.add_stream_from_template(part.streams.video[0])
        tracks = {stream.index: target.add_stream_from_template(stream) for stream in source.streams.audio}
        pictures, sound = _picture_packets(paths, video, film), _sound_packets(source, tracks)
        for packet in heapq.merge(pictures, sound, key=lambda packet: packet.dts * packet.time_base):
            target.mux(packet)


def _picture_packets(paths: Sequence[Path], video: av.VideoStream, film: Film) -> Iterator[av.Packet]:
    for path in paths:
        with av.open(str(path), format=PART) as part:
            for packet in part.demux(video=0):
                if packet.dts is not None:
                    packet.duration = round(film.step * film.time_base / packet.time_base)
                    packet.stream = video
                    yield packet


def _sound_packets(source: InputContainer, tracks: Mapping[int, av.AudioStream]) -> Iterator[av.Packet]:
    for packet in source.demux(*source.streams.audio) if tracks else ():
        if packet.dts is not None:
            packet.stream = tracks[packet.stream_index]
            yield packet


def _write_gif(film: Film, paths: Sequence[Path], whole: Path) -> None:
    """Write the parts' frames as a GIF, each with its own 256 colours, timed to a hundredth of a second."""
    last = round(100 * film.every(GIF_RATE) / film.rate)
    with av.open(str(whole), "w", format="gif", options={"final_delay": str(last)}) as target:
        stream, start = None, None
        for frame in chain.from_iterable(_decoded(path, PART) for path in paths):
            picture, seconds = frame.to_ndarray(format="rgb24"), frame.pts * frame.time_base
            if stream is None:
                stream, start = target.add_stream("gif", rate=100), seconds
                stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "pal8"
            target.mux(stream.encode(_few_colours(picture, round(100 * (seconds - start)))))
        target.mux(stream.encode())


def _few_colours(picture: np.ndarray, hundredths: int) -> av.VideoFrame:
    image = Image.fromarray(picture).quantize(256, dither=Image.Dither.NONE)
    palette = np.full((256, 4), 255, np.uint8)  # alpha, red, green, blue
    colours = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    palette[: len(colours), 1:] = colours
    frame = av.VideoFrame.from_ndarray((np.asarray(image), palette), format="pal8")
    frame.pts, frame.time_base = hundredths, Fraction(1, 100)
    return frame


def write_film(path: Path, pictures: Iterable[np.ndarray], rate: int, sound: np.ndarray) -> None:
    """Write pictures, (H, W, 3) in uint8 each, sides even, `rate` a second, and a sound as a video.

    The file's ending tells what kind it is. The sound is (samples,) in int16, 48,000 of them per second.
    """
    pictures = iter(pictures)
    first = next(pictures)
    with av.open(str(path), "w") as file:
        video, audio = file.add_stream(ENCODER, rate=rate), file.add_stream("aac", rate=SAMPLES, layout="mono")
        video.height, video.width, video.pix_fmt = *first.shape[:2], "yuv420p"
        for picture in chain([first], pictures):
            file.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        heard = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
        heard.sample_rate = SAMPLES
        for packets in (audio.encode(heard), video.encode(), audio.encode()):
            file.mux(packets)


def cut_film(source: Path, path: Path, seconds: float) -> None:
    """Copy the beginning of a video, sound included, without coding it again; UserError if it is damaged."""
    inspect_video(source, progress=False)
    with _opened(source) as (old, video), av.open(str(path), "w") as new:
        streams = [video, *old.streams.audio]
        tracks = {stream.index: new.add_stream_from_template(stream) for stream in streams}
        for packet in old.demux(*streams):
            start = packet.pts if packet.dts is None else packet.dts
            if start is not None and start * packet.time_base < seconds:
                packet.stream = tracks[packet.stream_index]
                new.mux(packet)


def read_frames(path: Path, count: int | None = None) -> list[np.ndarray]:
    """Frames of a video, (H, W, 3) in uint8 each: `count` of them, spread evenly over it, or all.

    UserError if it cannot be read, or is damaged.
    """
    film = inspect_video(path, progress=False)
    wanted = spread(film.frames, count)
    return [to_array(frame, film) for number, frame in enumerate(_decoded(path)) if number in wanted]


def write_gif(path: Path, pictures: Sequence[np.ndarray], width: int, rate: float) -> display.Image:
    """Write pictures, (H, W, 3) in uint8, as a GIF this many pixels wide, 64 colours each; as notebooks show it."""
    size = (width * pictures[0].shape[0] // pictures[0].shape[1], width)
    small = [Image.fromarray(resized(picture, size)) for picture in pictures]
    # an octree keeps rare colours too
    few = [image.quantize(64, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE) for image in small]
    few[0].save(path, save_all=True, append_images=few[1:], duration=round(1000 / rate), loop=0)
    return display.Image(path)


def is_gif(path: Path) -> bool:
    """Whether this file is to be a GIF."""
    return path.suffix.lower() == ".gif"
