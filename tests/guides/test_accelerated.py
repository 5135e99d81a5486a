"""Image, guide, patches to keep, target, in one module: what its three lines give by hand, and nothing more."""

import copy
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import assert_close, randomise, traces

from vitsal.errors import UserError
from vitsal.guides import GradientRolloutGuide, RolloutGuide
from vitsal.guides.accelerated import AcceleratedViT
from vitsal.guides.adapters import StudentGuide
from vitsal.guides.baselines import CenterGuide, RandomGuide
from vitsal.jobs.sealed import read_sealed, write_sealed
from vitsal.models.loading import load_model
from vitsal.models.tokens import model_transform
from vitsal.reduction.drop import forward_kept, keep_patches
from vitsal.reduction.keep import top_k_patches
from vitsal.reduction.merge import merge_tokens
from vitsal.reduction.reduction import Reduction
from vitsal.students.student import Student, load_student, save_student

GUIDES = {
    "random": lambda target: RandomGuide((4, 4), seed=3),
    "center": lambda target: CenterGuide((4, 4)),
    "rollout": lambda target: RolloutGuide(target, "max", 0.5),
    "gradient": lambda target: GradientRolloutGuide(target),
    "student": lambda target: StudentGuide(randomise(Student(grid_size=(4, 4), width=4).eval()), target),
}


@pytest.fixture(params=GUIDES.values(), ids=GUIDES)
def guide(request, tiny_vit):
    return request.param(tiny_vit)


@torch.no_grad()
@pytest.mark.parametrize("keep_ratio", [0.75, 0.5, 0.01])
def test_equals_the_three_lines_by_hand(tiny_vit, images, guide, keep_ratio):
    before = traces(tiny_vit)
    saliency = guide(images)
    keep = top_k_patches(saliency, keep_ratio)
    logits = forward_kept(tiny_vit, images, keep)
    fast = AcceleratedViT(tiny_vit, guide, keep_ratio)
    assert torch.equal(fast(images), logits)
    assert torch.equal(fast(images), logits)  # and again
    assert (logits - tiny_vit(images)).abs().max() > 0.05  # the patches that went did matter
    assert traces(tiny_vit) == before


@torch.no_grad()
def test_batch_equals_its_single_images(tiny_vit, images, guide):
    fast = AcceleratedViT(tiny_vit, guide, 0.5)
    assert_close(torch.cat([fast(image[None]) for image in images]), fast(images))


@torch.no_grad()
@pytest.mark.parametrize("keep_ratio", [1, 1.0])
def test_keeping_all_is_the_untouched_model_and_asks_no_guide(tiny_vit, images, keep_ratio):
    fast = AcceleratedViT(tiny_vit, lambda images: pytest.fail("asked"), keep_ratio)
    assert torch.equal(fast(images), tiny_vit(images))


@pytest.mark.parametrize("keep_ratio", [0, 0.0, -0.5, 1.5, "half", "0.5", None, True, float("nan")])
def test_keep_ratio_outside_its_range(tiny_vit, keep_ratio):
    with pytest.raises(UserError, match=r"keep ratio must .*\(0, 1\]"):
        AcceleratedViT(tiny_vit, CenterGuide((4, 4)), keep_ratio)


def test_saliency_that_is_not_finite(tiny_vit, images):
    fast = AcceleratedViT(tiny_vit, lambda images: torch.full((4, 4, 4), float("nan")), 0.5)
    with pytest.raises(UserError, match="not finite"):
        fast(images)


def test_it_is_in_the_targets_mode_with_the_targets_weights(tiny_vit):
    for training in (False, True):
        fast = AcceleratedViT(tiny_vit.train(training), CenterGuide((4, 4)), 0.5)
        assert {module.training for module in fast.modules()} == {training}
    assert list(fast.parameters()) == list(tiny_vit.parameters())


@pytest.fixture
def student():
    return randomise(Student(grid_size=(4, 4), width=4).eval())


ALL = Reduction(0.75, "2c", (48, 48), "1-")  # 9 patches, of which 7 are kept, and 3, 2 and 1 of them merged away
COARSE = Reduction(0.5, "2", soften="1-", rest="coarse")  # 4 cells, of which 2 are kept: 10 tokens, 2 at a time merged


@torch.no_grad()
def test_a_student_is_a_guide_and_merging_a_number(tiny_vit, images, student):
    expected = AcceleratedViT(tiny_vit, StudentGuide(student, tiny_vit), Reduction(0.5, "2"))(images)
    assert torch.equal(AcceleratedViT(tiny_vit, student, 0.5, 2)(images), expected)
    assert torch.equal(AcceleratedViT(tiny_vit, student, 0.5, merge="2 2 2")(images), expected)


@torch.no_grad()
@pytest.mark.parametrize("reduction", [Reduction(), Reduction(0.5), Reduction(merge="2"), ALL, COARSE])
def test_features_are_what_the_head_reads(tiny_vit, images, student, reduction):
    fast = AcceleratedViT(tiny_vit, student, reduction)
    features = fast.forward_features(images)
    left = {Reduction(): 17, Reduction(0.5): 9, Reduction(merge="2"): 11, ALL: 1 + 7 - 2 - 2 - 1, COARSE: 1 + 10 - 6}
    assert features.shape == (4, left[reduction], 192)
    assert torch.equal(tiny_vit.forward_head(features), fast(images))


@torch.no_grad()
def test_explains_what_became_of_each_patch(tiny_vit, images, student):
    """Dropping and merging at the target's own size: by the contexts themselves."""
    fast = AcceleratedViT(tiny_vit, student, 0.75, 2)
    told, saliency = fast.explain(images), StudentGuide(student, tiny_vit)(images)
    keep = top_k_patches(saliency, 0.75)
    with keep_patches(tiny_vit, keep), merge_tokens(tiny_vit, 2) as merged:
        assert torch.equal(told.logits, tiny_vit(images))
    assert torch.equal(told.saliency, saliency)
    for image, tokens in enumerate(told.tokens.flatten(1)):
        groups = dict(zip(keep[image].tolist(), merged.groups[image].tolist(), strict=True))
        assert tokens.tolist() == [groups.get(patch, -1) for patch in range(16)]


@torch.no_grad()
def test_explains_without_merging_and_without_dropping(tiny_vit, images, student):
    told = AcceleratedViT(tiny_vit, student, 0.25).explain(images)
    assert [sorted(row[row >= 0].tolist()) for row in told.tokens.flatten(1)] == [[1, 2, 3, 4]] * 4
    told = AcceleratedViT(tiny_vit, None).explain(images)
    assert told.saliency is None
    assert torch.equal(told.tokens.flatten(1), torch.arange(1, 17).expand(4, -1))


def test_without_a_guide_nothing_can_be_dropped(tiny_vit):
    with pytest.raises(UserError, match=r"To keep 0\.5 of the patches takes a guide"):
        AcceleratedViT(tiny_vit, None, 0.5)


@torch.no_grad()
def test_its_state_holds_target_and_student(tiny_vit, images, student):
    fast = AcceleratedViT(tiny_vit, student, ALL)
    expected = fast(images)
    other = AcceleratedViT(randomise(copy.deepcopy(tiny_vit), 1), randomise(copy.deepcopy(student), 1), ALL)
    assert not torch.equal(other(images), expected)
    other.load_state_dict(fast.state_dict())
    assert torch.equal(other(images), expected)
    assert sum(value.numel() for value in {*fast.parameters()}) > sum(value.numel() for value in tiny_vit.parameters())


@torch.no_grad()
@pytest.mark.parametrize("reduction", [Reduction(merge="2", input_size=(48, 48)), Reduction(0.5), ALL, COARSE])
def test_saved_and_loaded_it_says_the_same(tiny_vit, images, student, tmp_path, reduction):
    fast = AcceleratedViT(tiny_vit, student, reduction)
    fast.save_pretrained(tmp_path / "fast", "# Fast")
    again = AcceleratedViT.from_pretrained(tmp_path / "fast")
    assert torch.equal(again(images), fast(images))
    assert again.reduction == reduction
    assert (tmp_path / "fast" / "README.md").read_text() == "# Fast\n"
    assert str(again.transform) == str(model_transform(tiny_vit))
    assert torch.equal(load_model(f"local-dir:{tmp_path / 'fast' / 'target'}")(images), tiny_vit(images))
    AcceleratedViT(tiny_vit, None, Reduction(merge="1")).save_pretrained(tmp_path / "fast")  # over what is there
    assert AcceleratedViT.from_pretrained(tmp_path / "fast").reduction == Reduction(merge="1")
    assert not (tmp_path / "fast" / "student").exists()


@torch.no_grad()
@pytest.mark.parametrize("lacking", [{"rest"}, {"soften", "rest"}])
def test_a_folder_of_before_there_were_all_levers_is_loaded(tiny_vit, images, student, tmp_path, lacking):
    fast = AcceleratedViT(tiny_vit, student, Reduction(0.5, "2"))
    fast.save_pretrained(tmp_path)
    config = read_sealed(tmp_path / "accelerated.json", "")
    config["reduction"] = {name: value for name, value in config["reduction"].items() if name not in lacking}
    write_sealed(tmp_path / "accelerated.json", config)
    again = AcceleratedViT.from_pretrained(tmp_path)
    assert again.reduction == fast.reduction
    assert torch.equal(again(images), fast(images))


@pytest.mark.slow
def test_loaded_in_a_fresh_process_it_says_the_same(tiny_vit, images, student, tmp_path):
    fast = AcceleratedViT(tiny_vit, student, ALL)
    fast.save_pretrained(tmp_path / "fast")
    with torch.no_grad():
        torch.save((images, fast(images)), tmp_path / "expected.pt")
    script = """
import sys, torch, vitsal as vs
images, expected = torch.load(sys.argv[1] + "/expected.pt")
with torch.no_grad():
    assert torch.equal(vs.AcceleratedViT.from_pretrained(sys.argv[1] + "/fast")(images), expected)
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True)


def test_folders_that_are_none_or_damaged(tiny_vit, student, tmp_path):
    with pytest.raises(UserError, match="There is no accelerated ViT at 'none/such'"):
        AcceleratedViT.from_pretrained("none/such")
    with pytest.raises(UserError, match=r"accelerated\.json cannot be read"):
        AcceleratedViT.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="Only students are saved with a target; the guide is a CenterGuide"):
        AcceleratedViT(tiny_vit, CenterGuide((4, 4)), 0.5).save_pretrained(tmp_path / "fast")
    AcceleratedViT(tiny_vit, student, 0.5).save_pretrained(tmp_path / "fast")
    AcceleratedViT(tiny_vit, randomise(student, 1), 0.5).save_pretrained(tmp_path / "other")
    shutil.copytree(tmp_path / "other" / "student", tmp_path / "fast" / "student", dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"target and student are not those that accelerated\.json tells of"):
        AcceleratedViT.from_pretrained(tmp_path / "fast")
    (tmp_path / "other" / "accelerated.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        AcceleratedViT.from_pretrained(tmp_path / "other")


def test_what_is_no_accelerated_vit_is_left_alone(tiny_vit, student, tmp_path):
    """A folder of students, say, with one in `student`."""
    save_student(student, tmp_path / "students" / "student")
    with pytest.raises(UserError, match=r"holds student, and no accelerated\.json: name another folder"):
        AcceleratedViT(tiny_vit, student, 0.5).save_pretrained(tmp_path / "students")
    assert load_student(tmp_path / "students" / "student").grid_size == (4, 4)


@torch.no_grad()
def test_half_precision_is_kept_in_the_folder(tiny_vit, images, student, tmp_path):
    fast = AcceleratedViT(tiny_vit, student, 0.75, 2).bfloat16()
    fast.save_pretrained(tmp_path / "fast")
    again = AcceleratedViT.from_pretrained(tmp_path / "fast")
    assert torch.equal(again(images.bfloat16()), fast(images.bfloat16()))


@torch.no_grad()
@pytest.mark.parametrize("reduction", [Reduction(0.5), ALL, COARSE])
def test_half_precision(tiny_vit, images, student, reduction):
    """Within bfloat16's three digits of the answers, given the same choice of patches."""
    expected = AcceleratedViT(tiny_vit, student, reduction).explain(images)
    told = AcceleratedViT(tiny_vit, student, reduction).bfloat16().explain(images.bfloat16())
    assert told.logits.dtype == torch.bfloat16
    same = (told.tokens == expected.tokens).flatten(1).all(dim=1)
    assert same.any()
    difference = (told.logits.float() - expected.logits).abs()[same].max()
    assert difference < 0.05 * expected.logits.abs().max()


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("reduction", [Reduction(0.5), ALL, COARSE])
def test_exported_for_any_batch_it_says_the_same(tiny_vit, images, student, reduction):
    fast = AcceleratedViT(tiny_vit, student, reduction)
    shapes = {"images": {0: torch.export.Dim.DYNAMIC}}
    exported = torch.export.export(fast, (images,), dynamic_shapes=shapes, strict=False).module()
    for batch in (images, images[:2], images.repeat(2, 1, 1, 1)):
        assert_close(exported(batch), fast(batch), 1e-5)
    assert_close(torch.compile(exported, backend="eager", fullgraph=True)(images), fast(images), 1e-5)


@torch.no_grad()
@pytest.mark.slow
def test_compiled_it_says_the_same(tiny_vit, images, student):
    """As dynamo traces it; what inductor makes of that takes a minute."""
    fast = AcceleratedViT(tiny_vit, student, ALL)
    assert_close(torch.compile(fast, backend="eager")(images), fast(images), 1e-5)
