"""Loading models: where weights come from, what is refused, and that a refusal says why."""

import argparse
import copy
import pickle
import time

import pytest
import timm
import torch
from helpers import Malicious, assert_close, randomise
from PIL import Image
from safetensors.torch import save_file

from vitsal.errors import UserError
from vitsal.models.loading import _check_supported, find_weights, load_model, megabytes, outline
from vitsal.models.tokens import grid_size, model_transform

NAME = "vit_tiny_patch16_224"
SMALL = {"img_size": 64, "depth": 1}


def small(seed, name=NAME, **options):
    return randomise(load_model(name, pretrained=False, **SMALL, **options), seed)


def save(model, path):
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


def assert_same_logits(one, other):
    images = torch.randn(2, 3, 64, 64)
    assert_close(one(images), other(images).detach(), 1e-6)


def test_checkpoint_comes_before_the_weights_folder(tmp_path, monkeypatch):
    explicit, in_folder = small(seed=1), small(seed=2)
    checkpoint = save(explicit, tmp_path / "mine.safetensors")
    save(in_folder, tmp_path / f"{NAME}.safetensors")
    monkeypatch.setenv("VITSAL_WEIGHTS_DIR", str(tmp_path))
    assert_same_logits(load_model(NAME, checkpoint, **SMALL), explicit)
    assert_same_logits(load_model(NAME, **SMALL), in_folder)


def test_random_weights_pass_over_the_weights_folder(tmp_path, monkeypatch):
    in_folder = small(seed=2)
    save(in_folder, tmp_path / f"{NAME}.safetensors")
    monkeypatch.setenv("VITSAL_WEIGHTS_DIR", str(tmp_path))
    random = load_model(NAME, pretrained=False, **SMALL)
    assert not torch.equal(random.head.weight, in_folder.head.weight)


@pytest.mark.parametrize("folder", [None, "empty"])
def test_hub_without_a_network(tmp_path, monkeypatch, folder):
    if folder:
        monkeypatch.setenv("VITSAL_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"No weights for 'vit_tiny_patch16_224'.*VITSAL_WEIGHTS_DIR.*hub") as error:
        load_model(NAME)
    assert (str(tmp_path) if folder else "not set") in str(error.value)


def test_eval_mode_and_device():
    model = load_model(NAME, pretrained=False, device="cpu", **SMALL)
    assert not any(module.training for module in model.modules())
    assert next(model.parameters()).device.type == "cpu"


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match=r"Unknown model 'vit_tini_patch16_224'.*Did you mean 'vit_tiny_patch16_224'"):
        load_model("vit_tini_patch16_224")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("swin_tiny_patch4_window7_224", "SwinTransformer"), ("convnext_tiny", "ConvNeXt"), ("resnet18", "ResNet")],
)
@pytest.mark.parametrize("pretrained", [True, False])
def test_models_without_patch_tokens_are_refused_by_name(name, kind, pretrained):
    """Without a network too: the model is looked at before its weights are fetched."""
    with pytest.raises(UserError, match=f"'{name}' is a {kind}.*Supported are timm's VisionTransformer, Eva, Beit"):
        load_model(name, pretrained=pretrained)


def test_number_of_classes_comes_from_the_checkpoint(tmp_path):
    source = small(seed=1, num_classes=37)
    loaded = load_model(NAME, save(source, tmp_path / "37.safetensors"), **SMALL)
    assert loaded.num_classes == 37
    assert_same_logits(loaded, source)


def test_what_the_user_says_comes_before_what_the_checkpoint_says(tmp_path):
    source = small(seed=1, global_pool="avg", num_classes=5)
    path = save(source, tmp_path / "mae.safetensors")
    loaded = load_model(NAME, path, global_pool="avg", num_classes=5, **SMALL)
    assert_same_logits(loaded, source)


def test_pickled_checkpoint(tmp_path):
    source = small(seed=1)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    assert_same_logits(load_model(NAME, tmp_path / "weights.pth", **SMALL), source)


def test_fine_tuned_mae_in_its_authors_layout(tmp_path):
    """{"model": ...}, no `norm` but `fc_norm`: the model must pool its patches."""
    source = small(seed=1, global_pool="avg")
    state = source.state_dict()
    assert "fc_norm.weight" in state
    assert "norm.weight" not in state
    torch.save({"model": state, "epoch": 99}, tmp_path / "mae_finetuned.pth")
    loaded = load_model(NAME, tmp_path / "mae_finetuned.pth", **SMALL)
    assert loaded.global_pool == "avg"
    assert_same_logits(loaded, source)


MAE = "vit_base_patch16_224.mae"
TRAINING = {
    "optimizer": {"state": {0: {"step": 7}}, "param_groups": [{"lr": 5e-4, "betas": (0.9, 0.999)}]},
    "epoch": 99,
    "scaler": {"scale": 65536.0},
    "args": argparse.Namespace(model="vit_base_patch16", batch_size=32, global_pool=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("beside", [{}, TRAINING], ids=["released", "saved by the training code"])
def test_mae_as_its_authors_release_and_save_it(tmp_path, beside):
    """The released file holds {"model": ...} alone; their training code puts its arguments and its state beside it."""
    source = randomise(load_model(MAE, pretrained=False, depth=2, num_classes=37, global_pool="avg"))
    torch.save({"model": source.state_dict()} | beside, tmp_path / "mae_finetuned_vit_base.pth")
    loaded = load_model(MAE, tmp_path / "mae_finetuned_vit_base.pth", depth=2)
    assert (loaded.global_pool, loaded.num_classes) == ("avg", 37)
    images = torch.randn(2, 3, 224, 224)
    assert torch.equal(loaded(images), source(images))


def test_arguments_beside_the_weights_hide_no_code(tmp_path):
    """A namespace is let through, what it holds is not."""
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    torch.save({"model": small(seed=1).state_dict(), "args": argparse.Namespace(evil=Malicious(marker))}, path)
    with pytest.raises(UserError, match=r"evil.pth is no checkpoint that can be read safely; nothing .* executed"):
        load_model(NAME, path, **SMALL)
    assert not marker.exists()
    assert argparse.Namespace not in torch.serialization.get_safe_globals()  # only while a checkpoint is read


def test_checkpoint_of_another_size_names_shapes(tmp_path):
    path = save(small(seed=1, name="vit_small_patch16_224"), tmp_path / "small.safetensors")
    with pytest.raises(
        UserError, match=r"small.safetensors does not fit VisionTransformer vit_tiny_patch16_224"
    ) as error:
        load_model(NAME, path, **SMALL)
    assert "cls_token (1, 1, 384) instead of (1, 1, 192)" in str(error.value)
    assert "of another shape" in str(error.value)
    assert "missing" not in str(error.value)


def test_checkpoint_of_another_depth_names_keys(tmp_path):
    path = save(small(seed=1), tmp_path / "shallow.safetensors")
    with pytest.raises(UserError, match=r"blocks.1.norm1.weight, .* and \d+ more missing"):
        load_model(NAME, path, img_size=64, depth=2)
    deep = load_model(NAME, pretrained=False, img_size=64, depth=2)
    with pytest.raises(UserError, match=r"blocks.1.attn.proj.bias, .* and \d+ more not in the model"):
        load_model(NAME, save(deep, tmp_path / "deep.safetensors"), **SMALL)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        (NAME, "resnet18"),
        (NAME, "beit_base_patch16_224"),
        ("beit_base_patch16_224", "eva02_tiny_patch14_224"),
        ("beit_base_patch16_224", "swin_tiny_patch4_window7_224"),
        ("eva02_tiny_patch14_224", "beit_base_patch16_224"),
        ("eva02_tiny_patch14_224", "resnet18"),
    ],
)
def test_checkpoint_of_another_architecture(tmp_path, name, other):
    shallow = {} if other.startswith(("resnet", "swin")) else {"depth": 1}
    path = save(timm.create_model(other, **shallow), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other.safetensors does not fit .* (missing|not in the model|another shape)"):
        load_model(name, path, depth=1)


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"model": {"head.weight": evil}}])
@pytest.mark.parametrize("saved_by", ["torch", "pickle"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickle_that_would_execute_code(tmp_path, saved_by, wrap):
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    content = wrap(Malicious(marker))
    torch.save(content, path) if saved_by == "torch" else path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"evil.pth is no checkpoint that can be read safely; nothing .* executed"):
        load_model(NAME, path, **SMALL)
    assert not marker.exists()
    pickle.loads(pickle.dumps(content))  # the same bytes, read carelessly, do execute
    assert marker.exists()


@pytest.mark.parametrize("name", ["notes.safetensors", "notes.pth", "notes.bin", "notes"])
@pytest.mark.parametrize("content", [b"these are my notes\n", b""])
def test_file_that_is_no_checkpoint(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"notes.* is no checkpoint"):
        load_model(NAME, tmp_path / name, **SMALL)


def test_truncated_checkpoint(tmp_path):
    path = save(small(seed=1), tmp_path / "cut.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"cut.safetensors is no checkpoint"):
        load_model(NAME, path, **SMALL)


def test_pickle_of_something_else(tmp_path):
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"list.pth"):
        load_model(NAME, tmp_path / "list.pth", **SMALL)


def test_missing_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint file at .*gone.safetensors"):
        load_model(NAME, tmp_path / "gone.safetensors")
    with pytest.raises(UserError, match="no checkpoint file at"):
        load_model(NAME, tmp_path)


def test_image_size_that_is_not_square():
    model = load_model(NAME, pretrained=False, img_size=(224, 160), depth=1)
    assert grid_size(model) == (14, 10)
    picture = model_transform(model)(Image.new("RGB", (500, 400)))
    assert picture.shape == (3, 224, 160)
    assert model(picture[None]).shape == (1, 1000)


def test_transform_is_the_models_own():
    """DeiT: resize the short side to 248 (crop 0.9), bicubic, ImageNet's mean and deviation; ViT: mean 0.5."""
    grey = Image.new("RGB", (300, 300), (51, 102, 153))
    for name, mean, std in [
        ("deit_tiny_patch16_224", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (NAME, (0.5,) * 3, (0.5,) * 3),
    ]:
        transform = model_transform(load_model(name, pretrained=False, depth=1))
        pixels = transform(grey)
        expected = (torch.tensor([0.2, 0.4, 0.6]) - torch.tensor(mean)) / torch.tensor(std)
        assert_close(pixels, expected[:, None, None].expand(3, 224, 224))


TAGGED = f"{NAME}.augreg_in21k_ft_in1k"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the hub's, and a machine that seems to have a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


@pytest.mark.parametrize("name", [NAME, TAGGED])
def test_download_is_announced_before_it_starts(hub_cache, monkeypatch, capsys, name):
    """vit_tiny has 5,717,416 parameters."""
    source, announced = load_model(NAME, pretrained=False), []

    def download(*args, **options):
        announced.append(capsys.readouterr())
        return source.state_dict()

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", download)
    monkeypatch.setattr("vitsal.models.loading._check_reachable", lambda hub: None)
    loaded = load_model(name)
    ((out, err),) = announced
    assert err == f"Downloading the weights of {name} from the hub: 23 MB.\n"
    assert out == ""
    assert torch.equal(loaded.head.weight, source.head.weight)


def test_without_a_network_it_says_so_at_once(hub_cache, monkeypatch, capsys):
    """Its own library tries again and again for 46 s."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(UserError, match=r"^No weights for .* the hub gave: no connection to http://127.0.0.1:9"):
        load_model(NAME)
    assert time.monotonic() - start < 10
    assert capsys.readouterr().err == ""  # no download is announced that does not start


def test_cached_weights_are_no_download(hub_cache, monkeypatch, capsys):
    source = load_model(NAME, pretrained=False)
    assert find_weights(TAGGED) == ""
    repository = hub_cache / f"models--timm--{TAGGED}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save(source, repository / "snapshots" / ("0" * 40) / "model.safetensors")
    assert find_weights(TAGGED) == find_weights(NAME) == "hub cache"
    assert find_weights(f"hf-hub:timm/{TAGGED}") == "hub cache"
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *args, **options: source.state_dict())
    load_model(TAGGED)
    assert capsys.readouterr().err == ""


def test_weights_that_are_here_are_no_download(hub_cache, tmp_path, monkeypatch, capsys):
    assert find_weights("vitsal_digits_guide") == "embedded"
    load_model("vitsal_digits_guide")
    save(small(seed=1), tmp_path / f"{NAME}.safetensors")
    monkeypatch.setenv("VITSAL_WEIGHTS_DIR", str(tmp_path))
    assert find_weights(NAME) == "weights folder"
    load_model(NAME, **SMALL)
    load_model(TAGGED, pretrained=False, **SMALL)
    assert capsys.readouterr().err == ""


LONG = "x" * 10_000
ODD_NAMES = ["foo:bar", "hf-hub:", "hf-hub: ", "hf-hub:a/b", "hf-hub:a/b/c", "hf-hub:../x", "hf-hub:\0", ":", "C:\\x"]
ODD_NAMES += ["local-dir:", "local-dir:/nowhere", "local-dir:empty", "local-dir:damaged", "local-dir:\0"]
ODD_NAMES += ["", " ", "\0", "vit\0", "a/b", "/etc", "../vit", "é", "\udcff", " vit_tiny_patch16_224", "empty"]
ODD_NAMES += [LONG, f"hf-hub:{LONG}", f"local-dir:{LONG}", "vit_tiny_patch16_224.gone", "vit_tiny_patch16_224."]


@pytest.mark.parametrize("name", ODD_NAMES, ids=lambda name: ascii(name)[:40])
@pytest.mark.parametrize("pretrained", [True, False])
def test_names_of_any_form(tmp_path, monkeypatch, name, pretrained):
    """Each is answered, briefly, also where there is a folder of weights to look in."""
    for folder, config in {"empty": None, "damaged": "{"}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(config) if config else None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITSAL_WEIGHTS_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"Unknown model|cannot be made|has no weights") as error:
        load_model(name, pretrained=pretrained)
    assert len(str(error.value)) < 1_500


def test_unknown_weights_of_a_known_model():
    with pytest.raises(
        UserError, match=r"^'vit_tiny_patch16_224' has no weights 'augreg'. Did you .* Known: augreg_in21k"
    ):
        load_model(f"{NAME}.augreg")


def test_sizes_that_a_model_cannot_have():
    for size in (-16, 0, "x", 10**30):
        with pytest.raises(UserError, match=r"'vit_tiny_patch16_224' cannot be made with img_size="):
            load_model(NAME, pretrained=False, img_size=size)


@pytest.mark.slow
def test_hybrids_are_refused_and_nothing_else_of_their_kind():
    """All of timm's ViTs, without memory for their weights."""
    names = [
        name for module in ("vision_transformer_hybrid", "deit", "beit") for name in timm.list_models(module=module)
    ]
    refused = [name for name in names if refusal(name)]
    assert refused == timm.list_models(module="vision_transformer_hybrid")
    assert {"vit_base_r50_s16_224", "vit_tiny_r_s16_p8_224", "vit_base_mci_224"} < set(refused)
    assert "'vit_base_r50_s16_224' is a hybrid: its tokens come out of a HybridEmbed" in refusal("vit_base_r50_s16_224")


def refusal(name):
    """Why a model is not supported; nothing is made or fetched for it. Where it is, an empty text."""
    try:
        _check_supported(outline(name), name)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "kind", [torch.int8, torch.uint8, torch.bool, torch.complex64, torch.int64, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_weights_of_a_wrong_type_are_named(tmp_path, kind, ending):
    """Cast in silence they would be other weights."""
    state = {key: value.clone() for key, value in small(seed=1).state_dict().items()}
    state["blocks.0.attn.qkv.weight"] = state["blocks.0.attn.qkv.weight"].to(kind)
    path = tmp_path / f"quantized.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    with pytest.raises(
        UserError, match=r"quantized.* holds weights of a type that cannot be used: blocks.0.attn.qkv.w"
    ) as e:
        load_model(NAME, path, **SMALL)
    assert f"blocks.0.attn.qkv.weight ({str(kind).removeprefix('torch.')}). Save it in float32, " in str(e.value)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision(tmp_path, kind):
    source = small(seed=1)
    save(copy.deepcopy(source).to(kind), tmp_path / "other.safetensors")
    loaded = load_model(NAME, tmp_path / "other.safetensors", **SMALL)
    assert loaded.head.weight.dtype == torch.float32
    assert torch.equal(loaded.head.weight, source.head.weight.to(kind).float())


@pytest.mark.parametrize(
    "change",
    [
        {"head.weight": torch.tensor(3.0)},
        {"head.weight": torch.empty(0)},
        {"norm.weight": torch.ones(192).to_sparse()},
        {"norm.weight": torch.ones(192, device="meta")},
        {3: torch.ones(3)},
        {"pos_embed": torch.tensor(1.0)},
        {"patch_embed.proj.weight": torch.ones(3)},
    ],
    ids=range(7),
)
def test_damaged_weights_are_named(tmp_path, change):
    torch.save(small(seed=1).state_dict() | change, tmp_path / "damaged.pth")
    with pytest.raises(
        UserError, match=r"damaged.pth (does not fit|does not hold|holds weights that|is no checkpoint)"
    ):
        load_model(NAME, tmp_path / "damaged.pth", **SMALL)


def test_size_without_memory():
    model = outline("vit_base_patch16_224")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert megabytes(model) == 4 * 86.567656


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "beit_base_patch16_224"])
def test_an_outline_lacks_nothing_but_values(name):
    def told(model):
        parts = [*model.named_parameters(), *model.named_buffers()]
        return [(key, part.shape, part.dtype, part.requires_grad) for key, part in parts]

    assert told(outline(name, depth=2)) == told(timm.create_model(name, depth=2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tiny_vit, tmp_path, value):
    state = tiny_vit.state_dict()
    state["blocks.1.norm1.bias"][3] = value
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"w.safetensors holds weights that are not finite: blocks.1.norm1.bias"):
        load_model("vit_tiny_patch16_224", tmp_path / "w.safetensors", img_size=64, depth=3)
