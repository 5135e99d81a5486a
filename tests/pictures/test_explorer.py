"""The explorer: every control does something, nothing is computed twice, and nothing that is given kills it."""

import base64
import io
import re
from datetime import datetime
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from helpers import assert_close
from PIL import Image

from vitsal.choices import METHODS
from vitsal.guides.adapters import StudentGuide
from vitsal.guides.explainers import HeadGuide
from vitsal.guides.factory import make_guide
from vitsal.models.loading import load_model
from vitsal.models.tokens import model_transform
from vitsal.pictures.explorer import ONE_HEAD, Explorer
from vitsal.reduction.drop import forward_kept
from vitsal.reduction.keep import top_k_patches
from vitsal.students.student import Student

NOW = datetime.now()
NAMES = ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "deit_tiny_patch16_224")


def picture(seed):
    """Noise in 8 x 8 coloured squares, bigger than the model's input."""
    colours = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((96, 96), Image.Resampling.NEAREST)


@pytest.fixture
def student():
    return Student(grid_size=(4, 4), width=4).eval()


@pytest.fixture
def explorer(tiny_vit, student):
    return Explorer({"tiny": tiny_vit}, {"one": picture(1), "two": picture(2)}, {"pupil": student})


def upload(explorer, content, name="new.png"):
    """What FileUpload sets when the browser has sent a file."""
    file = {"name": name, "type": "", "size": len(content), "content": memoryview(content), "last_modified": NOW}
    explorer.upload.set_trait("value", (file,))


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def test_every_control_changes_the_picture(explorer):
    seen = {bytes(explorer.picture.value)}
    assert Image.open(io.BytesIO(explorer.picture.value)).size == (959, 540)
    changes = [
        (explorer.image, "two"),
        (explorer.head_fusion, "mean"),
        (explorer.discard_ratio, 0.3),
        (explorer.drop_ratio, 0.8),
        (explorer.method, "last-attention"),
        (explorer.method, ONE_HEAD),
        (explorer.block, 2),
        (explorer.head, 3),
        (explorer.method, "grad-rollout"),
        (explorer.category, explorer.category.options[4][1]),
        (explorer.method, "grad-attention"),
        (explorer.method, "flow"),
        (explorer.student, explorer.student.options[1][1]),
    ]
    for number, (control, value) in enumerate(changes, start=2):
        control.value = value
        seen.add(bytes(explorer.picture.value))
        assert len(seen) == number, f"{control.description} = {value} changed nothing"


def test_attention_is_recorded_once_for_each_picture(explorer, tiny_vit):
    passes = []
    tiny_vit.register_forward_hook(lambda module, args, output: passes.append(output.requires_grad))
    for control, value in [
        (explorer.discard_ratio, 0.5),
        (explorer.head_fusion, "min"),
        (explorer.method, "grad-rollout"),
        (explorer.category, explorer.category.options[1][1]),
        (explorer.method, ONE_HEAD),
    ]:
        control.value = value
    assert sum(passes) == 0
    assert len(passes) == 5  # each time the kept patches alone, without a gradient
    explorer.image.value = "two"
    assert sum(passes) == 1


def test_a_map_is_computed_once_for_each_setting(explorer, monkeypatch):
    explorer.method.value = "flow"
    known = dict(explorer.explore()._maps)
    monkeypatch.setattr("vitsal.guides.explainers.attention_flow", lambda *_, **__: pytest.fail("computed again"))
    explorer.drop_ratio.value = 0.7
    assert explorer.explore()._maps == known


@pytest.mark.parametrize("method", METHODS)
def test_map_is_that_of_the_guide(explorer, tiny_vit, method):
    explorer.image.value, explorer.method.value = "two", method
    explorer.head_fusion.value, explorer.discard_ratio.value = "max", 0.6
    category = explorer.category.options[3][1]
    explorer.category.value = category
    images = model_transform(tiny_vit)(picture(2))[None]
    guide = make_guide(method, tiny_vit, head_fusion="max", discard_ratio=0.6, category_index=category)
    assert explorer.guides() == {f"{method}: {category}" if "grad" in method else method: guide}
    assert_close(explorer.explore().saliency(guide), guide(images)[0])


def test_one_head_of_one_block(explorer, tiny_vit):
    explorer.method.value, explorer.block.value, explorer.head.value = ONE_HEAD, 2, 3
    assert explorer.guides() == {"block 2, head 3": HeadGuide(tiny_vit, block=1, head=2)}
    images = model_transform(tiny_vit)(picture(1))[None]
    recorded = explorer.explore().record.attentions[1][0, 2, 0, 1:].view(4, 4)
    assert_close(explorer.explore().saliency(HeadGuide(tiny_vit, 1, 2)), recorded)
    assert_close(HeadGuide(tiny_vit, 1, 2)(images)[0], recorded)


def test_student_is_drawn_beside_the_method(explorer, tiny_vit, student):
    explorer.student.value = student
    guide = explorer.guides()["student pupil"]
    assert guide == StudentGuide(student, tiny_vit)
    assert_close(explorer.explore().saliency(guide), guide(model_transform(tiny_vit)(picture(1))[None])[0])
    canvas = explorer.draw().axes[0]
    written = [text.get_text() for text in canvas.texts]
    assert {"image", "rollout", "8 of 16 patches", "student pupil"} < set(written)
    assert any(re.fullmatch(r"\d+ % shared, Spearman -?\d\.\d\d", text) for text in written)
    assert len(canvas.images) == 5


def test_what_the_model_makes_of_the_kept_patches(explorer, tiny_vit):
    explorer.drop_ratio.value = 0.75
    guide = make_guide("rollout", tiny_vit, head_fusion="max", discard_ratio=0.9)
    images = model_transform(tiny_vit)(picture(1))[None]
    keep = top_k_patches(guide(images), 0.25)
    with torch.inference_mode():
        probabilities = forward_kept(tiny_vit, images, keep).softmax(dim=1)[0]
    view = explorer.explore().look(guide, 0.75)
    assert view.keep.tolist() == keep[0].tolist()
    assert [top.index for top in view.predictions] == probabilities.topk(5).indices.tolist()
    assert [top.probability for top in view.predictions] == pytest.approx(probabilities.topk(5).values.tolist())
    canvas = explorer.draw().axes[0]
    left, right, *_ = canvas.images[2].get_extent()  # the kept patches, and under them their bars
    bars = [bar.get_width() for bar in canvas.patches if bar.get_x() == left]
    assert bars == pytest.approx([(right - left) * share for share in probabilities.topk(5).values.tolist()])


def test_class_menu_names_the_likeliest_classes(explorer, tiny_vit):
    with torch.inference_mode():
        probabilities = tiny_vit(model_transform(tiny_vit)(picture(1))[None]).softmax(dim=1)[0]
    order = probabilities.argsort(descending=True).tolist()
    assert explorer.category.options == tuple((f"{i} ({100 * probabilities[i]:.0f} %)", i) for i in order)
    assert explorer.category.value == order[0]


def test_controls_that_a_method_does_not_know_are_switched_off(explorer):
    names = ["category", "head_fusion", "discard_ratio", "block", "head"]

    def alive(method):
        explorer.method.value = method
        return {name for name in names if not getattr(explorer, name).disabled}

    assert alive("flow") == alive("rollout") == {"head_fusion", "discard_ratio"}
    assert alive("grad-rollout") == {"category", "discard_ratio"}
    assert alive("grad-attention") == {"category"}
    assert alive("last-attention") == set()
    assert alive(ONE_HEAD) == {"block", "head"}


def test_another_model_by_its_name(explorer):
    before = bytes(explorer.picture.value)
    explorer.model.value = "vitsal_digits_guide"
    assert bytes(explorer.picture.value) != before
    guide = load_model("vitsal_digits_guide")
    assert explorer.block.max == len(guide.blocks)
    assert explorer.message.value.startswith(f"vitsal_digits_guide: {len(guide.blocks)} blocks")
    explorer.model.value = "tiny"
    assert explorer.block.max == 3
    assert bytes(explorer.picture.value) == before


@pytest.mark.parametrize(
    "name", ["vit_tinny", "resnet18", "", pytest.param("vit_base_patch16_224.dino", marks=pytest.mark.slow)]
)
def test_a_model_that_cannot_be_had_leaves_everything_as_it_was(explorer, name):
    before = bytes(explorer.picture.value)
    explorer.model.value = name
    assert explorer.model.value == "tiny"
    assert explorer.message.value
    assert bytes(explorer.picture.value) == before
    explorer.drop_ratio.value = 0.8
    assert bytes(explorer.picture.value) != before


def test_model_without_a_classifier(explorer):
    bare = load_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=2, num_classes=0)
    explorer = Explorer({"bare": bare, **explorer._models}, {"one": picture(1)})
    assert explorer.method.options == ("rollout", "last-attention", "flow", ONE_HEAD)
    assert explorer.category.options == ()
    assert explorer.explore().look(explorer.guides()["rollout"], 0.5).predictions == []
    explorer.model.value = "tiny"
    assert "grad-rollout" in explorer.method.options
    explorer.method.value = "grad-rollout"
    explorer.model.value = "bare"
    assert explorer.method.value == "rollout"


def test_upload_is_chosen_and_can_be_replaced(explorer):
    upload(explorer, png(picture(3)))
    assert explorer.image.value == "new.png"
    assert explorer.image.options == ("one", "two", "new.png")
    assert explorer.message.value == "new.png: 96 x 96 pixels."
    first = bytes(explorer.picture.value)
    upload(explorer, png(picture(4)))  # another file of the same name
    assert bytes(explorer.picture.value) != first
    assert len(explorer.image.options) == 3


def test_upload_that_is_no_picture_is_refused_in_words(explorer):
    before = bytes(explorer.picture.value)
    upload(explorer, b"no picture at all", "<b>notes</b>.txt")
    assert explorer.message.value.startswith("&lt;b&gt;notes&lt;/b&gt;.txt is no picture")
    assert explorer.image.options == ("one", "two")
    assert bytes(explorer.picture.value) == before
    explorer.image.value = "two"
    assert bytes(explorer.picture.value) != before


def test_an_unforeseen_error_is_told_too(explorer, monkeypatch):
    monkeypatch.setattr(explorer, "draw", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # and still reaches the log
        explorer.drop_ratio.value = 0.1
    assert explorer.message.value == "This did not work: ZeroDivisionError: division by zero"


def test_current_picture_is_offered_as_png_and_svg(explorer):
    explorer.method.value = "grad-rollout"
    explorer.save.click()
    links = re.findall(r'download="([^"]+)" href="data:([^;]+);base64,([^"]+)"', explorer.links.value)
    assert [name for name, *_ in links] == ["one grad-rollout.png", "one grad-rollout.svg"]
    bitmap, drawing = (base64.b64decode(content) for *_, content in links)
    assert Image.open(io.BytesIO(bitmap)).size == (2666, 1500)
    assert ElementTree.fromstring(drawing).tag == "{http://www.w3.org/2000/svg}svg"
    explorer.drop_ratio.value = 0.9
    assert explorer.links.value == ""  # they were of another picture


def test_only_so_many_uploads_are_kept(explorer, monkeypatch):
    """The oldest go; one that comes again is new again; what was given at the start stays."""
    monkeypatch.setattr("vitsal.pictures.explorer.MOST_UPLOADS", 3)
    for name in ("a", "b", "c", "a", "d", "one", "e"):
        upload(explorer, png(picture(3)), name)
    assert explorer.image.options == ("one", "two", "a", "d", "e")
    assert list(explorer._pictures) == ["one", "two", "a", "d", "e"]
    assert explorer.image.value == "e"


def test_only_so_many_models_are_kept(explorer, tiny_vit, monkeypatch):
    """One that is chosen again is new again, and one that failed is not kept at all."""
    loaded = []

    def load(name):
        loaded.append(name)
        return tiny_vit if name != NAMES[-1] else None

    monkeypatch.setattr("vitsal.pictures.explorer.load_model", load)
    monkeypatch.setattr("vitsal.pictures.explorer.MOST_MODELS", 2)
    for name in (NAMES[0], NAMES[1], NAMES[0], NAMES[2], "tiny"):
        explorer.model.value = name
    assert list(explorer._models) == ["tiny", NAMES[0], NAMES[2]]
    assert loaded == list(NAMES[:3])
    with pytest.raises(AttributeError):
        explorer.model.value = NAMES[-1]
    assert list(explorer._models) == ["tiny", NAMES[0], NAMES[2]]


@pytest.mark.parametrize(
    "name", ["local-dir:{}", "{}", "hf-hub:{}", "file:{}", "vit", "hf-hub:timm/vit_tiny_patch16_224"]
)
def test_the_model_field_reads_no_path_of_the_server(explorer, tiny_vit, tmp_path, monkeypatch, name):
    """Not even of a folder that holds a model."""
    tiny_vit.pretrained_cfg = {"architecture": "vit_tiny_patch16_224"}
    for folder in (tmp_path / "secret", tmp_path / "vit"):
        folder.mkdir()
        (folder / "config.json").write_text('{"architecture": "vit_tiny_patch16_224", "num_classes": 3}')
        torch.save(tiny_vit.state_dict(), folder / "pytorch_model.bin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vitsal.pictures.explorer.load_model", lambda name: pytest.fail(f"{name} was opened"))
    for path in (tmp_path / "secret", "secret"):
        explorer.model.value = name.format(path)
        assert explorer.model.value == "tiny"
        assert explorer.message.value.startswith("Unknown model ")


def test_names_in_the_figure_are_no_mathematics(explorer, tiny_vit):
    """In titles and in classes' names."""
    tiny_vit.pretrained_cfg = {**tiny_vit.pretrained_cfg, "label_names": [f"$\\frac$ {index}" for index in range(10)]}
    explorer._students["$x_{"] = explorer.student.options[1][1]
    explorer.student.options = [("none", None), *explorer._students.items()]
    explorer.image.value, explorer.student.index = "two", 2
    explorer.save.click()
    drawing = base64.b64decode(re.findall(r'svg\+xml;base64,([^"]+)"', explorer.links.value)[0]).decode()
    written = [text.get_text() for text in explorer.draw().axes[0].texts]
    assert "student $x_{" in written
    assert sum(text.startswith("$\\frac$ ") for text in written) == 15
    assert not any(text.get_parse_math() for text in explorer.draw().axes[0].texts if "$" in text.get_text())
    assert drawing
