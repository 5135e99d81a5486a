"""Names of models, in any form: each is refused in a sentence before anything of it is fetched or made."""

import random

import pytest
import timm
from entry import outcome

from vitsal.errors import UserError
from vitsal.models.loading import load_model

FORMS = (
    "", " ", ".", "..", "/", "//", "a\0b", "caf\udce9", "a\nb", "x" * 10_000, "foo", "foo:bar", "foo:", ":", ":bar",
    "::", "hf-hub:", "hf-hub:a", "hf-hub:a/b", "hf-hub:a/b@c", "hf-hub:/", "hf-hub:../..", "hf-hub:a/b/c", "hf-hub: ",
    "hf_hub:a/b", "hf-hub:" + "x" * 300, "local-dir:", "local-dir:none", "local-dir:/", "local-dir:.",
    "local-dir:/etc/passwd", "local-dir:" + "x" * 300, "local-dir:a\0b", "file:/etc/passwd", "http://127.0.0.1/a",
    "https://a/b", "timm/", "a/b", "timm/vit_tiny_patch16_224", "../vit_tiny_patch16_224", "./vit_tiny_patch16_224",
    "vit", "vit_", "vit_tiny_patch16", "VIT_TINY_PATCH16_224", "vit_tiny_patch16_224 ", "vit_tiny_patch16_224.",
    "vit_tiny_patch16_224.none", "vit_tiny_patch16_224.a.b", "vit_tiny_patch16_224,", "vit_tiny_patch16_224\n",
    "{[]:1}", "[]", "None", "0", "$HOME", "*", "vit_*", "%s", "__class__", "VisionTransformer",
    "timm.models.vision_transformer", "--help",
)  # fmt: skip
HYBRIDS = ("vit_tiny_r_s16_p8_224", "vit_small_r26_s32_224", "vit_small_resnet26d_224", "vit_base_resnet26d_224")
SUPPORTED = ("vit", "deit", "beit", "eva", "flexivit", "vitsal", "naflexvit", "mobilevit")  # and families near them
OTHERS = random.Random(0).sample([name for name in timm.list_models() if not name.startswith(SUPPORTED)], 30)


def refusal(name):
    """What is wrong with how a name is refused; '' where nothing is."""
    said = []

    def load():
        try:
            load_model(
                name, pretrained=name in FORMS
            )  # that there are no weights here is no reason to refuse the others
        except UserError as error:
            said.append(str(error))

    if (ended := outcome(load)) != 0:
        return f"ended with {ended}"
    if not said:
        return "was loaded"
    return "" if 20 < len(said[0]) < 2_000 else f"a message of {len(said[0])} characters"


@pytest.mark.slow
@pytest.mark.parametrize("names", [FORMS, OTHERS, HYBRIDS], ids=["odd", "other families", "hybrids"])
def test_each_is_refused(names):
    wrong = [f"{name[:80]!a} -> {problem}" for name in names if (problem := refusal(name))]
    assert not wrong, f"{len(wrong)} names:\n" + "\n".join(wrong)


def test_there_are_many():
    assert len({*FORMS, *OTHERS, *HYBRIDS}) >= 60
