"""Pictures that people hand in: whatever they are, they are read rightly or refused in words."""

import io
import random
import warnings

import numpy as np
import pytest
from PIL import Image

from vitsal.data.pictures import MOST_ELONGATED, BrokenImage, decode, open_image, to_rgb
from vitsal.data.uploads import LONGEST_SIDE, read_upload
from vitsal.errors import UserError


def file_of(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_plain_picture():
    picture, told = read_upload(file_of(Image.new("RGB", (40, 30), (200, 10, 90)), "png"), "red.png")
    assert told == "red.png: 40 x 30 pixels."
    assert picture.mode == "RGB"
    assert picture.getpixel((0, 0)) == (200, 10, 90)


def test_sixteen_bits_keep_their_shades():
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    picture, told = read_upload(file_of(Image.fromarray(ramp), "png"), "x.png")
    assert told == "x.png: 64 x 64 pixels; scaled from 16 bits to 8."
    assert np.array_equal(np.asarray(picture)[..., 0], ramp // 256)  # Pillow's own conversion makes nearly all white


@pytest.mark.parametrize(("kind", "values"), [(np.float32, [0.0, 0.5, 1.0]), (np.int32, [-70_000, 0, 70_000])])
def test_thirty_two_bits_go_from_black_to_white(kind, values):
    picture, told = read_upload(file_of(Image.fromarray(np.array([values], dtype=kind)), "tiff"), "x.tif")
    assert told == "x.tif: 3 x 1 pixels; scaled from 32 bits to 8."
    assert [picture.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (127, 127, 127), (255, 255, 255)]
    plain = Image.fromarray(np.full((2, 2), 3, dtype=kind))
    assert to_rgb(plain).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_from_files_of_data_sets(tmp_path, kind):
    Image.fromarray(np.full((4, 4), 128 * 256 + 7, dtype=np.uint16)).save(tmp_path / f"a.{kind}")
    assert open_image(tmp_path / f"a.{kind}").getpixel((2, 2)) == (128, 128, 128)
    with Image.open(tmp_path / f"a.{kind}") as image:
        assert to_rgb(image).getpixel((0, 0)) == (128, 128, 128)


def test_cmyk():
    picture, told = read_upload(file_of(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "jpeg"), "print.jpg")
    assert told == "print.jpg: 8 x 8 pixels; turned from CMYK into RGB."
    assert np.allclose(picture.getpixel((4, 4)), (255, 0, 0), atol=4)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("blue", "red", "lime")]
    content = file_of(frames[0], "gif", save_all=True, append_images=frames[1:])
    picture, told = read_upload(content, "a.gif")
    assert told == "a.gif: 8 x 8 pixels; the first of 3 frames."
    assert picture.getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_hundred_megapixels_are_scaled_down(kind):
    content = file_of(Image.new("RGB", (12_500, 8_000), (10, 200, 90)), kind)
    picture, told = read_upload(content, "big")
    assert max(picture.size) == LONGEST_SIDE
    assert told == f"big: {LONGEST_SIDE} x {picture.height} pixels; scaled down from 12500 x 8000."
    assert picture.height == pytest.approx(LONGEST_SIDE * 0.64, abs=1)
    assert np.allclose(picture.getpixel((9, 9)), (10, 200, 90), atol=4)


def test_telephones_photograph_is_turned_upright(tmp_path):
    image = Image.new("RGB", (16, 8), "black")
    image.paste("white", (0, 0, 8, 8))  # left half
    exif = Image.Exif()
    exif[0x0112] = 6  # held on its side: to be turned clockwise
    content = file_of(image, "png", exif=exif)
    (tmp_path / "p.png").write_bytes(content)
    for upright in (read_upload(content, "p.png")[0], open_image(tmp_path / "p.png")):
        assert upright.size == (8, 16)
        assert upright.getpixel((4, 1)) == (255, 255, 255)  # what lay left is on top
        assert upright.getpixel((4, 14)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"just a text", "no picture that can be read"),
        (file_of(Image.effect_noise((64, 64), 50), "png")[:400], "cannot be read as a picture: .*truncated"),
        (b"P6 20000 20000 255\n" + bytes(64), "has too many pixels to be decoded safely: 179 megapixels at most"),
        (
            file_of(Image.new("1", (1, 1_000_000)), "png"),
            "cannot be read as a picture: 1 x 1000000 pixels, one side more",
        ),
        (
            file_of(Image.new("F", (2, 2), float("nan")), "tiff"),
            "cannot be read as a picture: it holds values that are",
        ),
    ],
    ids=["empty", "text", "damaged", "bomb", "strip", "no numbers"],
)
def test_what_is_no_picture_is_refused_in_words(content, words):
    with pytest.raises(UserError, match=rf"^notes\.txt .*{words}"):
        read_upload(content, "notes.txt")


def test_names_of_uploads_are_printable():
    with pytest.raises(UserError, match=r"^two\\nlines\.png is empty"):
        read_upload(b"", "two\nlines.png")


@pytest.mark.parametrize("size", [(1, MOST_ELONGATED), (2 * MOST_ELONGATED, 2)])
def test_what_is_not_quite_a_strip(size):
    assert read_upload(file_of(Image.new("RGB", size), "png"), "x.png")[0].size == size


Image.init()


@pytest.mark.parametrize("kind", sorted(Image.SAVE))
def test_damage_of_any_kind_is_told_in_words(kind):
    """AVIF, BLP, DDS, ...: Pillow's decoders raise what they happen to meet."""
    try:
        mode = {"BLP": "P", "PALM": "P", "QOI": "RGB", "MSP": "1", "XBM": "1"}.get(kind, "L")
        content = file_of(Image.effect_noise((48, 32), 80).convert(mode), kind)
    except (OSError, KeyError):
        pytest.skip(f"Pillow cannot write {kind} here")
    chance = random.Random(kind)
    told = []
    for _ in range(25):
        damaged = bytearray(content[: chance.choice([len(content), chance.randrange(1, len(content))])])
        for _ in range(chance.randrange(8)):
            damaged[chance.randrange(min(len(damaged), chance.choice([64, len(damaged)])))] = chance.randrange(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for read, error in [(decode, BrokenImage), (lambda file: read_upload(file.read(), "x"), UserError)]:
                try:
                    read(io.BytesIO(damaged))
                except error as refused:
                    told.append(str(refused))
    assert all(message.isprintable() and message for message in told)
