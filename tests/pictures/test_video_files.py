"""Films that are written, cut and read again: what is seen and heard, and for how long."""

import av
import numpy as np
import pytest
from films import frames_of, moving_picture, write_film as film_with_sound
from PIL import Image

from vitsal.errors import UserError
from vitsal.pictures.video_files import cut_film, inspect_video, read_frames, write_film, write_gif


def loudness(path):
    """Samples of the sound, in [-1, 1]."""
    with av.open(str(path)) as film:
        return np.concatenate([frame.to_ndarray()[0] for frame in film.decode(audio=0)])


def test_a_written_film_shows_its_pictures_and_sounds(tmp_path):
    pictures = [moving_picture(number) for number in range(20)]
    wave = (8000 * np.sin(2 * np.pi * 440 * np.arange(2 * 48_000) / 48_000)).astype(np.int16)
    write_film(tmp_path / "film.mp4", iter(pictures), 10, wave)
    frames, times = frames_of(tmp_path / "film.mp4")
    assert np.abs(frames - np.array(pictures, dtype=float)).mean() < 6
    assert times == pytest.approx(np.arange(20) / 10)
    heard = loudness(tmp_path / "film.mp4")
    assert len(heard) == pytest.approx(2 * 48_000, rel=0.05)
    assert np.abs(np.fft.rfft(heard[:48_000])).argmax() == 440  # cycles in one second


def test_a_cut_film_is_the_beginning_bit_by_bit(tmp_path):
    whole = film_with_sound(tmp_path / "whole.mkv", 50)
    cut_film(whole, tmp_path / "cut.mkv", 0.8)
    film = inspect_video(tmp_path / "cut.mkv", progress=False)
    frames, _ = frames_of(tmp_path / "cut.mkv")
    assert film.sound == ("aac",)
    assert 18 <= len(frames) <= 23  # packets are in the order of decoding
    assert np.array_equal(frames[:18], frames_of(whole)[0][:18])
    with pytest.raises(UserError, match="cannot be read as a video"):
        cut_film(tmp_path / "none.mkv", tmp_path / "cut.mkv", 1.0)


def test_frames_are_spread_evenly(tmp_path):
    path = film_with_sound(tmp_path / "film.mp4", 12)
    frames, _ = frames_of(path)
    assert np.array_equal(read_frames(path, 4), frames[[0, 3, 6, 9]])
    assert np.array_equal(read_frames(path), frames)


def test_a_gif_has_the_pictures_in_few_colours_for_so_long(tmp_path):
    shown = write_gif(tmp_path / "film.gif", [moving_picture(number, 60, 80) for number in range(4)], 40, 5)
    assert shown.data == (tmp_path / "film.gif").read_bytes()
    with Image.open(tmp_path / "film.gif") as gif:
        assert (gif.size, gif.n_frames, gif.info["duration"]) == ((40, 30), 4, 200)
        for number in range(4):
            gif.seek(number)
            wanted = Image.fromarray(moving_picture(number, 60, 80)).resize((40, 30), Image.Resampling.LANCZOS)
            seen = np.asarray(gif.convert("RGB"), dtype=float)
            assert np.abs(seen - np.asarray(wanted)).mean() < 12
            assert len(np.unique(seen.reshape(-1, 3), axis=0)) <= 64
