"""The explorer as a page of its own: every control, every kind of file that people upload, and what they take home."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from explorer_page import METHOD_CONTROLS, ExplorerPage
from PIL import Image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def explorer(page, serve, notebooks):
    """What `make app` opens."""
    with serve(["voila", "explorer.ipynb"], notebooks) as url:
        page.goto(url)
        page.locator("img.widget-image").wait_for()
        yield ExplorerPage(page)


@pytest.mark.parametrize("method", METHOD_CONTROLS)
def test_method_and_its_controls(explorer, method):
    explorer.try_method(method)


@pytest.mark.parametrize("label", ["image", "student", "drop", "method"])
def test_control_moves_the_picture(explorer, label):
    with explorer.new_picture():
        explorer.move(label)


def test_another_model(explorer):
    with explorer.new_picture():
        explorer.type_model("vitsal_digits_guide")
    explorer.expect_message("vitsal_digits_guide: ")


def test_unknown_model_is_refused(explorer):
    before = explorer.digest()
    explorer.type_model("vit_of_my_dreams")
    explorer.expect_message("Unknown model 'vit_of_my_dreams'")
    assert explorer.digest() == before
    with explorer.new_picture():
        explorer.move("drop")


def text(path):
    path.write_text("dear diary")


def nothing(path):
    path.touch()


def deep_grey(path):
    Image.fromarray(np.arange(256 * 256, dtype=np.uint16).reshape(256, 256)).save(path)


def for_print(path):
    Image.new("CMYK", (320, 200), (200, 20, 0, 30)).save(path)


def animation(path):
    frames = [Image.new("RGB", (120, 90), colour) for colour in ("red", "green", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def huge(path):
    Image.new("RGB", (10_000, 10_000), "teal").save(path, compress_level=1)


def huge_and_noisy(path):
    """More bytes than a websocket message has by default, 10 MB."""
    noise = np.random.default_rng(0).integers(0, 256, (1_000, 1_000), dtype=np.uint8)
    Image.fromarray(np.tile(noise, (10, 10))).save(path)
    assert path.stat().st_size > 20e6


UPLOADS = {  # file -> what makes it, and what the message must say
    "notes.txt": (text, "is no picture"),
    "empty.png": (nothing, "is empty"),
    "renamed.png": (text, "is no picture"),
    "grey16.png": (deep_grey, "16 bits"),
    "cmyk.jpg": (for_print, "CMYK"),
    "animated.gif": (animation, "first of 3 frames"),
    "huge.png": (huge, "10000 x 10000"),
    "huge.jpg": (huge_and_noisy, "10000 x 10000"),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_upload_is_answered_and_the_page_lives_on(explorer, tmp_path, name):
    make, told = UPLOADS[name]
    make(tmp_path / name)
    before = explorer.digest()
    explorer.upload(tmp_path / name)
    explorer.expect_message(told)
    assert name in explorer.message.inner_text()
    chosen = explorer.control("image").locator("option:checked").inner_text()
    refused = make in (text, nothing)
    assert (chosen == name, explorer.digest() == before) == (not refused, refused)
    with explorer.new_picture():
        explorer.move("image")


def test_same_file_again(explorer, tmp_path):
    for colour in ("red", "blue"):
        Image.new("RGB", (200, 100), colour).save(tmp_path / "same.png")
        with explorer.new_picture():
            explorer.upload(tmp_path / "same.png")


def test_pictures_to_take_home(explorer):
    explorer.page.get_by_role("button", name="Save picture").click()
    files = {}
    for kind in ("PNG", "SVG"):
        with explorer.page.expect_download() as download:
            explorer.page.get_by_role("link", name=kind, exact=True).click()
        assert download.value.suggested_filename.endswith(f".{kind.lower()}")
        files[kind] = download.value.path()
    with Image.open(files["PNG"]) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1_500
        picture.load()
    assert ElementTree.parse(files["SVG"]).getroot().tag == "{http://www.w3.org/2000/svg}svg"
