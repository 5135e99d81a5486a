"""Heat maps over videos that are made here, with sound: what is drawn, when it is shown, kills, memory, bad files."""

import os
import resource
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from films import RATE, frames_of, moving_picture, write_film
from helpers import assert_close, randomise, save_image
from PIL import Image
from torchvision.transforms.functional import normalize, pil_to_tensor

from vitsal.choices import SEGMENT
from vitsal.errors import UserError
from vitsal.guides import LastAttentionGuide, RolloutGuide
from vitsal.guides.baselines import CenterGuide
from vitsal.guides.explainers import HeadGuide
from vitsal.jobs.files import locked
from vitsal.models.loading import load_model
from vitsal.pictures import video
from vitsal.pictures.overlays import Column, draw_frames, overlay, whole_frame_transform
from vitsal.pictures.video import draw_on_video


def sound_of(path):
    """Sound packets: [(seconds, bytes)]."""
    with av.open(str(path)) as film:
        return [(float(p.pts * p.time_base), bytes(p)) for p in film.demux(audio=0) if p.dts is not None]


def tiny_model(depth=2):
    torch.manual_seed(0)
    return randomise(load_model("vit_tiny_patch16_224", pretrained=False, img_size=32, depth=depth, num_classes=10))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def columns(model):
    return {"frame": Column(), "rollout": Column(RolloutGuide(model), model)}


def test_model_sees_the_whole_frame(model):
    frame = Image.fromarray(moving_picture(3, 40, 96))
    squeezed = pil_to_tensor(frame.resize((32, 32), Image.Resampling.BICUBIC)) / 255
    assert_close(whole_frame_transform(model)(frame), normalize(squeezed, [0.5] * 3, [0.5] * 3))


def test_panels_are_the_guides_maps_over_the_frame(model):
    frames = [moving_picture(number) for number in range(3)]
    guides = {"rollout": RolloutGuide(model), "last": LastAttentionGuide(model)}
    columns = {"frame": Column()} | {name: Column(guide, model) for name, guide in guides.items()}
    drawn = draw_frames(frames, columns, strength=0.7, names=False).astype(float)
    assert drawn.shape == (3, 48, 3 * 64, 3)
    assert np.array_equal(drawn[:, :, :64], frames)
    for place, guide in enumerate(guides.values(), 1):
        for number, frame in enumerate(frames):
            saliency = guide(whole_frame_transform(model)(Image.fromarray(frame))[None])[0]
            panel = drawn[number, :, 64 * place : 64 * (place + 1)]
            assert np.abs(panel - 255 * overlay(frame / 255, saliency, 0.7)).max() <= 1


def test_batch_equals_its_single_frames(columns):
    frames = [moving_picture(number) for number in range(5)]
    single = np.concatenate([draw_frames([frame], columns) for frame in frames])
    assert np.abs(draw_frames(frames, columns).astype(int) - single).max() <= 1


def test_smaller_panels_have_the_maps_of_whole_frames(model):
    seen = []
    guide = lambda images: seen.append(images) or torch.rand(len(images), 2, 2)  # noqa: E731
    frame = moving_picture(0)
    assert draw_frames([frame], {"map": Column(guide, model)}, (24, 32)).shape == (1, 24, 32, 3)
    assert_close(seen[0][0], whole_frame_transform(model)(Image.fromarray(frame)))


def test_names_stay_in_their_corner(columns):
    frames = [moving_picture(0, 96, 128)]
    plain, named = (draw_frames(frames, columns, names=names)[0] for names in (False, True))
    rows, places, _ = np.nonzero(plain != named)
    assert 0 < rows.max() < 16
    assert {place // 128 for place in places} == {0, 1}


def test_every_head_has_a_panel(model):
    images = torch.randn(2, 3, 32, 32)
    heads = HeadGuide(model)(images)
    assert heads.shape == (2, 3, 2, 2)
    assert_close(heads.mean(1), LastAttentionGuide(model)(images), 1e-6)
    assert draw_frames([moving_picture(0)], {"head": Column(HeadGuide(model), model)}).shape == (1, 48, 3 * 64, 3)


@pytest.mark.parametrize(
    ("source", "output", "rate"),
    [
        ("a.mp4", "b.mp4", 25),
        pytest.param("a.mkv", "b.mov", Fraction(30000, 1001), marks=pytest.mark.slow),
        pytest.param("a.mp4", "b.mkv", Fraction(30000, 1001), marks=pytest.mark.slow),
    ],
)
def test_frames_times_and_sound_are_kept(tmp_path, columns, source, output, rate):
    source, output = write_film(tmp_path / source, 30, rate=rate), tmp_path / output
    assert draw_on_video(source, output, columns, names=False, progress=False) == output
    (before, times), (after, new_times) = frames_of(source), frames_of(output)
    expected = np.concatenate([draw_frames([frame], columns, names=False) for frame in before])
    assert np.abs(after.astype(float) - expected).mean() < 4  # H.264 is lossy
    assert np.diff(new_times) == pytest.approx(np.diff(times), abs=0.0011)  # Matroska counts milliseconds
    sound, new_sound = sound_of(source), sound_of(output)
    assert [content for _, content in new_sound] == [content for _, content in sound]
    lag = [start - frame for (start, _), frame in zip((sound[0], new_sound[0]), (times[0], new_times[0]), strict=True)]
    assert lag[1] == pytest.approx(lag[0], abs=0.0011)
    with av.open(str(source)) as old, av.open(str(output)) as new:
        assert float(new.streams.video[0].average_rate) == pytest.approx(float(rate), rel=1e-3)
        assert new.duration == pytest.approx(old.duration, abs=30_000)  # microseconds
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, output.name])


def test_uneven_times_are_kept(tmp_path, columns):
    ticks = [0, 40, 50, 200, 210, 500]
    with av.open(str(tmp_path / "a.mkv"), "w") as film:
        video = film.add_stream("libx264", rate=RATE)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(moving_picture(number), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 1000)
            film.mux(video.encode(frame))
        film.mux(video.encode())
    draw_on_video(tmp_path / "a.mkv", tmp_path / "b.mp4", columns, progress=False)
    assert frames_of(tmp_path / "b.mp4")[1] == pytest.approx([tick / 1000 for tick in ticks])


def test_silent_film_with_odd_sides(tmp_path, columns):
    source = write_film(tmp_path / "a.mkv", 3, size=(47, 65), codec="ffv1", pixels="bgr0", sound=None)
    draw_on_video(source, tmp_path / "b.mp4", columns, names=False, progress=False)
    after, _ = frames_of(tmp_path / "b.mp4")
    expected = draw_frames([moving_picture(n, 47, 65)[:46, :64] for n in range(3)], columns, names=False)
    assert after.shape == expected.shape == (3, 46, 128, 3)
    assert np.abs(after.astype(float) - expected).mean() < 4


def test_film_of_a_turned_telephone_stands_upright(tmp_path):
    source = write_film(tmp_path / "a.mp4", 2, turn=-90)  # to be turned clockwise
    draw_on_video(source, tmp_path / "b.mp4", {"frame": Column()}, names=False, progress=False)
    (before, _), (after, _) = frames_of(source), frames_of(tmp_path / "b.mp4")
    clockwise = np.rot90(before[0], -1).astype(float)
    assert after.shape == (2, 64, 48, 3)
    assert np.abs(after[0] - clockwise).mean() < 4 < np.abs(after[0] - clockwise[::-1, ::-1]).mean()


def test_narrower_film(tmp_path, columns):
    draw_on_video(write_film(tmp_path / "a.mp4", 3), tmp_path / "b.mp4", columns, width=70, progress=False)
    assert frames_of(tmp_path / "b.mp4")[0].shape == (3, 26, 68, 3)


@pytest.mark.slow
def test_gif_for_slides(tmp_path, columns):
    source = write_film(tmp_path / "a.mp4", 31, size=(240, 320), rate=30)
    draw_on_video(source, tmp_path / "b.gif", columns, names=False, progress=False)
    with Image.open(tmp_path / "b.gif") as gif:
        assert (gif.n_frames, gif.size) == (11, (480, 180))
        gif.seek(10)
        last, milliseconds = np.asarray(gif.convert("RGB"), dtype=float), gif.info["duration"]
    assert milliseconds == 100
    expected = draw_frames([moving_picture(30, 240, 320)], columns, (180, 240), names=False)[0]
    assert np.abs(last - expected).mean() < 8  # 256 colours


@dataclass(frozen=True)
class SlowGuide(RolloutGuide):
    """A guide that can be told to take its time, and writes down how many frames it saw."""

    def __call__(self, images):
        time.sleep(float(os.environ.get("SLOW", 0)))
        with Path(os.environ["SEEN"]).open("a") as file:
            file.write("." * len(images))
        return super().__call__(images)


def draw_slowly(source, output):
    model = tiny_model()
    draw_on_video(source, output, {"slow": Column(SlowGuide(model), model)}, progress=False)


def start_python(code, *arguments):
    here = {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"import sys, test_video; {code}", *map(str, arguments)]
    return subprocess.Popen(command, env=os.environ | here, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_frames(tmp_path, monkeypatch):
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    source = write_film(tmp_path / "a.mp4", 2 * SEGMENT + 20)
    draw_slowly(source, tmp_path / "whole.mp4")
    (tmp_path / "seen").unlink()

    monkeypatch.setenv("SLOW", "0.1")
    killed = get_context("fork").Process(target=draw_slowly, args=(source, tmp_path / "killed.mp4"))
    killed.start()
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("killed.mp4.parts/000000-*.nut")) and time.monotonic() < deadline:
        assert killed.exitcode is None
        time.sleep(0.02)
    killed.kill()
    killed.join()
    assert not (tmp_path / "killed.mp4").exists()
    assert (tmp_path / "seen").stat().st_size < 2 * SEGMENT

    monkeypatch.setenv("SLOW", "0")
    (tmp_path / "seen").unlink()
    draw_slowly(source, tmp_path / "killed.mp4")
    assert (tmp_path / "seen").stat().st_size == SEGMENT + 20 + 1  # the first frame tells how many panels there are
    (whole, times), (resumed, new_times) = frames_of(tmp_path / "whole.mp4"), frames_of(tmp_path / "killed.mp4")
    assert len(whole) == 2 * SEGMENT + 20
    assert np.array_equal(whole, resumed)
    assert times == new_times
    assert sound_of(tmp_path / "killed.mp4") == sound_of(tmp_path / "whole.mp4")
    assert not list(tmp_path.glob("*.parts"))


class Stopped(Exception):
    """As a machine that goes down stops a run, but for this process."""


@dataclass(frozen=True)
class CountingGuide(CenterGuide):
    """Counts the frames that it sees, and stops after so many."""

    seen = 0
    last = None

    def __call__(self, images):
        if CountingGuide.last and CountingGuide.seen + len(images) > CountingGuide.last:
            raise Stopped
        CountingGuide.seen += len(images)
        return super().__call__(images)


@pytest.fixture
def stopped(tmp_path, model, monkeypatch):
    """Draws a film of two parts and a half, and says how many frames the guide saw; it was stopped in the third part.

    Parts are of eight frames here.
    """
    monkeypatch.setattr(video, "SEGMENT", 8)

    def draw(name="b.mp4", last=None, **options):
        monkeypatch.setattr(CountingGuide, "seen", 0)
        monkeypatch.setattr(CountingGuide, "last", last)
        columns = {"c": Column(CountingGuide((2, 2)), model)}
        with suppress(Stopped):
            draw_on_video(tmp_path / "a.mp4", tmp_path / name, columns, progress=False, batch_size=4, **options)
        return CountingGuide.seen - 1  # the first frame tells how many panels there are

    write_film(tmp_path / "a.mp4", 20)
    assert draw("whole.mp4") == 20
    assert draw(last=18) == 16
    return draw


def flip_a_bit(first, second):
    content = first.read_bytes()
    first.write_bytes(one_bit_flipped(content, len(content) // 2))


def one_bit_flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def swap(first, second):
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)


@pytest.mark.parametrize(
    ("damage", "drawn_again"),
    [
        (lambda first, second: None, 0),
        (flip_a_bit, 1),
        (lambda first, second: first.write_bytes(first.read_bytes()[:-100]), 1),
        (lambda first, second: first.write_bytes(b""), 1),
        (lambda first, second: first.write_bytes(b"#EXTM3U\n#EXTINF:10,\n/etc/hostname\n#EXT-X-ENDLIST\n"), 1),
        (lambda first, second: first.write_bytes(second.read_bytes()), 1),
        (lambda first, second: second.rename(second.with_name(second.name.replace("000001", "000000"))), 1),
        (swap, 2),
    ],
    ids=["nothing", "bit", "cut", "empty", "playlist", "twice", "renamed", "swapped"],
)
def test_damaged_parts_are_drawn_again(tmp_path, stopped, damage, drawn_again):
    parts = sorted(tmp_path.glob("b.mp4.parts/*.nut"))
    assert [part.name[:6] for part in parts] == ["000000", "000001"]
    damage(*parts)
    with warnings.catch_warnings(record=True) as words:
        assert stopped() == 4 + drawn_again * 8
    said = [str(word.message) for word in words]
    assert all("is damaged, or a part of something else, and is drawn again" in word for word in said)
    assert len(said) == drawn_again
    (whole, times), (resumed, new_times) = frames_of(tmp_path / "whole.mp4"), frames_of(tmp_path / "b.mp4")
    assert np.array_equal(whole, resumed)
    assert times == new_times
    assert not list(tmp_path.glob("*.parts"))


def test_part_of_another_job_is_not_put_into_the_film(tmp_path, stopped):
    """The same film drawn fainter, stopped too: its first part, under its own name, in place of ours."""
    stopped("faint.mp4", last=18, strength=0.1)
    theirs = next(tmp_path.glob("faint.mp4.parts/000000-*.nut"))
    next(tmp_path.glob("b.mp4.parts/000000-*.nut")).unlink()
    theirs.rename(tmp_path / "b.mp4.parts" / theirs.name)
    (tmp_path / "b.mp4.parts" / "zzz.nut").write_text("these are my notes")
    with pytest.warns(UserWarning, match=rf"{theirs.name} is damaged, or a part of something else"):
        assert stopped() == 4 + 8
    assert np.array_equal(frames_of(tmp_path / "whole.mp4")[0], frames_of(tmp_path / "b.mp4")[0])


@pytest.mark.parametrize("content", ["[" * 100_000, "", "[]", '{"strength": ' + "9" * 5000 + "}"])
def test_damaged_settings_of_parts_are_refused(tmp_path, stopped, content):
    (tmp_path / "b.mp4.parts" / "settings.json").write_text(content)
    with pytest.raises(UserError, match=r"settings.json cannot be read .*Delete it, or name another output"):
        stopped()
    assert len(list(tmp_path.glob("b.mp4.parts/*.nut"))) == 2


def test_second_run_that_draws_the_same_film_is_refused(tmp_path, stopped):
    """A stopped run's parts are there; while another process holds them, nobody else goes on with them."""
    with locked(tmp_path / "b.mp4.parts" / "drawing"):
        with pytest.raises(UserError, match=r"Another run is drawing .*b.mp4. Wait for it, or name another output"):
            stopped()
        assert CountingGuide.seen == 1  # the first frame
    assert stopped() == 4
    assert np.array_equal(frames_of(tmp_path / "whole.mp4")[0], frames_of(tmp_path / "b.mp4")[0])


def print_peak(source, output):
    """Draw, and print this process's largest memory so far, in kB."""
    model = tiny_model(depth=1)
    draw_on_video(source, output, {"frame": Column(), "center": Column(CenterGuide((2, 2)), model)}, progress=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(tmp_path):
    films = [write_film(tmp_path / f"{s}.mp4", s * RATE, size=(360, 640), codec="mpeg4") for s in (1, 6)]
    code = "[test_video.print_peak(source, sys.argv[3]) for source in sys.argv[1:3]]"
    said, _ = start_python(code, *films, tmp_path / "out.mp4").communicate(timeout=300)
    short, long = map(int, said.split())
    assert long - short < 25_000  # what the encoder keeps is 10,000 kB, what the longer film has more of frames 86,000


def test_another_jobs_parts_are_left_alone(tmp_path, columns):
    source, output = write_film(tmp_path / "a.mp4", 3), tmp_path / "b.mp4"
    parts = tmp_path / "b.mp4.parts"
    save_image(parts / "mine.png")
    with pytest.raises(UserError, match=r"settings.json cannot be read .*another job's parts"):
        draw_on_video(source, output, columns, progress=False)
    (parts / "settings.json").write_text('{"strength": 0.1}')
    with pytest.raises(UserError, match=r"another job's parts .*strength: 0.1 there, 0.7 now"):
        draw_on_video(source, output, columns, progress=False)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.mp4", "b.mp4.parts", "mine.png", "settings.json"]


def test_files_that_are_no_video(tmp_path, columns):
    (tmp_path / "text.mp4").write_text("no video, but words\n" * 99)
    (tmp_path / "empty.mp4").touch()
    write_film(tmp_path / "sound.mp4", codec=None)
    problems = {
        "missing.mp4": "There is no video file",
        "text.mp4": "cannot be read as a video",
        "empty.mp4": "cannot be read as a video",
        "sound.mp4": "no video stream that can be decoded; it holds: audio",
    }
    for name, problem in problems.items():
        with pytest.raises(UserError, match=problem):
            draw_on_video(tmp_path / name, tmp_path / "out.mp4", columns, progress=False)
    assert not list(tmp_path.glob("out*"))


def cut_short(content):
    return content[: len(content) // 2]


def overwritten(content):
    middle = len(content) // 2
    return content[:middle] + bytes(400) + content[middle + 400 :]


@pytest.mark.parametrize(("ending", "damage"), [(".mp4", cut_short), (".mkv", cut_short), (".mp4", overwritten)])
def test_damaged_film_is_named_with_the_place(tmp_path, columns, ending, damage):
    source = write_film(tmp_path / f"a{ending}", 100)
    source.write_bytes(damage(source.read_bytes()))
    (tmp_path / "out.mp4").write_text("as it was")
    with pytest.raises(UserError, match=r"is damaged after frame [1-9]\d, at [1-3]\.\d\d s: .*Nothing was written"):
        draw_on_video(source, tmp_path / "out.mp4", columns, progress=False)
    assert (tmp_path / "out.mp4").read_text() == "as it was"
    assert not list(tmp_path.glob("*.parts"))


def test_requests_that_cannot_be_met(tmp_path, columns):
    source = write_film(tmp_path / "a.mp4", 3)
    (tmp_path / "folder.mp4").mkdir()
    problems = [
        ("a.mp4", columns, {}, "is the source itself"),
        ("b.webm", columns, {}, "must end with one of .mp4, .mov, .mkv, .gif"),
        ("b", columns, {}, "must end with"),
        ("folder.mp4", columns, {}, "is a folder"),
        ("b.mp4", {}, {}, "no column"),
        ("b.mp4", columns, {"strength": 1.5}, "strength of the heat map"),
        ("b.mp4", columns, {"batch_size": 0}, "batch size"),
        ("b.mp4", columns, {"width": 0}, "width"),
        ("b.mp4", {str(number): Column() for number in range(300)}, {}, "300 panels of 64 pixels make 19200"),
    ]
    for output, wanted, options, problem in problems:
        with pytest.raises(UserError, match=problem):
            draw_on_video(source, tmp_path / output, wanted, progress=False, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "folder.mp4"]


def test_sound_that_the_output_cannot_hold(tmp_path, columns):
    source = write_film(tmp_path / "a.mkv", 3, sound="tta")
    with pytest.raises(UserError, match=r"cannot hold the sound of .*a.mkv as it is \(tta\); write to .*b.mkv"):
        draw_on_video(source, tmp_path / "b.mp4", columns, progress=False)
    draw_on_video(source, tmp_path / "b.mkv", columns, progress=False)
    assert [content for _, content in sound_of(tmp_path / "b.mkv")] == [content for _, content in sound_of(source)]
