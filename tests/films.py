"""Films that are made for tests, with sound, and read again."""

from fractions import Fraction
from functools import cache

import av
import numpy as np

RATE = 25


@cache
def still_picture(height, width):
    """Smooth colours, (H, W, 3) in uint8, that look the same neither turned nor mirrored."""
    y, x = 2 * np.pi * np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    waves = [np.sin(x), np.cos(x) * np.cos(y / 2), np.sin(y / 3 + x)]
    return (127.5 + 120 * np.stack(waves, axis=2)).astype(np.uint8)


def moving_picture(number, height=48, width=64):
    """Frame `number`: colours that drift to the right, (H, W, 3) in uint8."""
    return np.roll(still_picture(height, width), 3 * number, axis=1)


def write_film(path, frames=20, *, size=(48, 64), rate=RATE, sound="aac", codec="libx264", pixels="yuv420p", turn=0):
    """A video with a sine of 440 Hz; returns its path."""
    with av.open(str(path), "w", options={"movflags": "+faststart"} if path.suffix == ".mp4" else {}) as film:
        video = film.add_stream(codec, rate=rate) if codec else None
        audio = film.add_stream(sound, rate=48000, layout="mono") if sound else None
        if video:
            video.height, video.width, video.pix_fmt = *size, pixels
            video.set_display_rotation(turn)
            for number in range(frames):
                film.mux(video.encode(av.VideoFrame.from_ndarray(moving_picture(number, *size), format="rgb24")))
            film.mux(video.encode())
        if audio:
            for start in range(0, int(frames / rate * 48000), 1024):
                film.mux(audio.encode(sine(start)))
            film.mux(audio.encode())
    return path


def sine(start):
    wave = np.sin((start + np.arange(1024)) * 2 * np.pi * 440 / 48000)
    frame = av.AudioFrame.from_ndarray((30000 * wave).astype(np.int16)[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
    return frame


def frames_of(path):
    """Decoded frames, (F, H, W, 3), and the times at which they are shown, in seconds."""
    with av.open(str(path)) as film:
        frames = list(film.decode(video=0))
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), [frame.time for frame in frames]
