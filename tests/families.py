"""Every family of ViTs that is supported, small."""

from dataclasses import dataclass, field

import pytest
from helpers import randomise

from vitsal.models.loading import load_model


@dataclass(frozen=True)
class Family:
    """A timm name, made shallow and for small images so that the tests are quick; all else is as timm makes it."""

    name: str
    prefix: int = 1
    readout: str = "class"
    size: tuple[int, int] = (96, 96)
    depth: int = 2
    options: dict = field(default_factory=dict)

    def load(self):
        model = load_model(self.name, pretrained=False, img_size=self.size, depth=self.depth, **self.options)
        return randomise(model)


RELATIVE = ("BEiT", "EVA-02", "RoPE", "DINOv3")  # how names of families begin whose positions are relative, or rotary


def each_of(families, quick):
    """Families, by their names, as parameters of tests: all but those that are named as quick are slow."""
    return [
        pytest.param(family, id=name, marks=[] if name in quick else pytest.mark.slow)
        for name, family in families.items()
    ]


def family_fixture(families, quick):
    """A test file's fixture `family`: each of these; `model` and `pictures` are then its."""

    @pytest.fixture(scope="module", params=each_of(families, quick))
    def family(request):
        return request.param

    return family


FAMILIES = {
    "ViT tiny": Family("vit_tiny_patch16_224", depth=3),
    "ViT base": Family("vit_base_patch16_224"),
    "ViT large": Family("vit_large_patch16_224"),
    "ViT huge": Family("vit_huge_patch14_224", size=(98, 98)),
    "ViT not square": Family("vit_tiny_patch16_224", size=(224, 160)),
    "DeiT distilled": Family("deit_tiny_distilled_patch16_224", prefix=2),
    "DeiT-III": Family("deit3_small_patch16_224"),
    "DINO": Family("vit_small_patch16_224.dino", options={"num_classes": 0}),
    "DINOv2 registers": Family("vit_small_patch14_reg4_dinov2", prefix=5, size=(112, 112)),
    "CLIP": Family("vit_base_patch16_clip_224"),
    "MAE fine-tuned": Family("vit_base_patch16_224", readout="patches", options={"global_pool": "avg"}),
    "SigLIP": Family("vit_base_patch16_siglip_224", prefix=0, readout="patches"),
    "BEiT": Family("beit_base_patch16_224", readout="patches"),
    "BEiT v2": Family("beitv2_base_patch16_224", readout="patches"),
    "BEiT, one table": Family(
        "beit_base_patch16_224",
        readout="patches",
        options={"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
    ),
    "BEiT not square": Family("beit_base_patch16_224", readout="patches", size=(96, 64)),
    "EVA-02": Family("eva02_tiny_patch14_224", readout="patches", size=(98, 98)),
    "EVA-02 not square": Family("eva02_tiny_patch14_224", readout="patches", size=(98, 70)),
    "RoPE mixed": Family("vit_small_patch16_rope_mixed_224"),
    "DINOv3": Family("vit_small_patch16_dinov3", prefix=5, readout="patches"),  # as timm pools it by default
    "DINOv3, class": Family("vit_small_patch16_dinov3", prefix=5, options={"global_pool": "token"}),
}
