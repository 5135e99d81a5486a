"""Students against networks written out by hand; what cannot be a student; the student's guide."""

import pytest
import timm
import torch
from helpers import assert_close, randomise
from timm.optim import create_optimizer_v2
from torch.nn import functional as F

from vitsal.errors import UserError
from vitsal.guides.adapters import StudentGuide
from vitsal.guides.factory import make_guide
from vitsal.models.loading import load_model
from vitsal.models.pixels import downsample
from vitsal.students.student import load_student, new_student, save_student

GEOMETRIES = [((4, 4), None), ((3, 5), None), ((14, 14), (28, 28)), ((14, 14), (84, 84))]
BACKBONES = ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]


def make_student(architecture="convnet", grid_size=(3, 5), **options):
    """A student with random weights, statistics of its batch norms included, in eval mode."""
    student = randomise(new_student(architecture, grid_size, **{"width": 8} | options))
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
    return student


def triangle(size_in, size_out):
    """Bilinear resampling along one axis, smoothed where it shrinks, as a matrix (size_out, size_in)."""
    scale = size_in / size_out
    centers = (torch.arange(size_out) + 0.5) * scale
    distances = (torch.arange(size_in) + 0.5 - centers[:, None]).abs()
    weights = (1 - distances / max(scale, 1)).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def lay(features, grid_size):
    rows, columns = (triangle(*sizes) for sizes in zip(features.shape[-2:], grid_size, strict=True))
    return rows @ features @ columns.T


def normed(features, norm):
    parts = (norm.running_mean, norm.running_var + norm.eps, norm.weight, norm.bias)
    mean, variance, weight, bias = (part[:, None, None] for part in parts)
    return (features - mean) / variance.sqrt() * weight + bias


def residual(features, block):
    first, norm1, _, second, norm2 = block.convolutions
    inner = normed(F.conv2d(features, first.weight, stride=first.stride, padding=1), norm1).relu()
    inner = normed(F.conv2d(inner, second.weight, padding=1), norm2)
    if len(list(block.shortcut.children())):
        features = normed(F.conv2d(features, block.shortcut[0].weight, stride=first.stride), block.shortcut[1])
    return (inner + features).relu()


def convnet(images, net, grid_size):
    stem = normed(F.conv2d(images, net.stem[0].weight, stride=2, padding=1), net.stem[1]).relu()
    middle = residual(residual(stem, net.middle[0]), net.middle[1])
    coarse = F.conv2d(residual(middle, net.coarse[0]), net.coarse[1].weight, net.coarse[1].bias)
    y, x = (torch.arange(m) * c // m for m, c in zip(middle.shape[-2:], coarse.shape[-2:], strict=True))  # nearest
    fused = normed(F.conv2d(middle + coarse[:, :, y][..., x], net.fuse[0].weight, padding=1), net.fuse[1]).relu()
    return lay(F.conv2d(fused, net.head.weight, net.head.bias), grid_size)[:, 0]


def transformer(images, net, grid_size):
    """Cell by cell in rows, then three blocks of attention between all of them."""
    vit, cells = net.tokens, grid_size[0] * grid_size[1]
    height, width = (side // count for side, count in zip(images.shape[-2:], grid_size, strict=True))
    cut = images.unfold(2, height, height).unfold(3, width, width)  # (B, 3, gh, gw, height, width)
    patches = cut.permute(0, 2, 3, 1, 4, 5).reshape(len(images), cells, -1)
    tokens = patches @ vit.patch_embed.proj.weight.flatten(1).T + vit.patch_embed.proj.bias + vit.pos_embed
    for block in vit.blocks:
        qkv = block.attn.qkv(block.norm1(tokens)).view(len(images), cells, 3, 4, -1).permute(2, 0, 3, 1, 4)
        attention = (qkv[0] @ qkv[1].transpose(-2, -1) / qkv.shape[-1] ** 0.5).softmax(dim=-1)
        tokens = tokens + block.attn.proj((attention @ qkv[2]).transpose(1, 2).flatten(2))
        tokens = tokens + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(tokens))))
    return (vit.norm(tokens) @ net.head.weight[0] + net.head.bias).view(-1, *grid_size)


@torch.no_grad()
@pytest.mark.parametrize(("grid_size", "input_size"), GEOMETRIES)
@pytest.mark.parametrize(("architecture", "by_hand"), [("convnet", convnet), ("transformer", transformer)])
def test_logits_equal_the_network_written_out(architecture, by_hand, grid_size, input_size):
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 0.4)
    student = make_student(architecture, grid_size, input_size=input_size, mean=mean, std=std)
    assert student.input_size == (input_size or (4 * grid_size[0], 4 * grid_size[1]))
    pixels = torch.rand(2, 3, *student.input_size)
    scaled = torch.stack([(pixels[:, channel] - mean[channel]) / std[channel] for channel in range(3)], dim=1)
    logits = student(pixels)
    assert logits.shape == (2, *grid_size)
    assert logits.std() > 0.1
    assert_close(logits, by_hand(scaled, student.network, grid_size) + student.position, 1e-4)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", BACKBONES)
def test_timm_backbone_by_name(name):
    """Its features, channels first or last, each projected, laid on the grid, and their sum read out."""
    student = make_student(name, (8, 6))
    pixels = torch.rand(2, 3, 32, 24)
    seen = []
    hook = student.network.backbone.register_forward_hook(lambda module, inputs, outputs: seen.extend(outputs))
    logits, total = student(pixels), 0
    hook.remove()
    for features, projection in zip(seen, student.network.projections, strict=True):
        features = features.permute(0, 3, 1, 2) if name.startswith("swin") else features
        assert features.shape[1] == projection.in_channels
        weighed = torch.einsum("oc,bchw->bohw", projection.weight[:, :, 0, 0], features)
        total = total + lay(weighed + projection.bias[:, None, None], (8, 6))
    head = student.network.head
    expected = torch.einsum("c,bchw->bhw", head.weight[0, :, 0, 0], total.relu()) + head.bias + student.position
    assert_close(logits, expected, 1e-3 * expected.abs().max().item())
    assert (student(pixels.flip(0)) - logits).abs().max() > 1e-3  # it does look at the image


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["convnet", "transformer", "resnet18", "position"])
def test_batch_equals_its_single_images_and_saliency_sums_to_1(architecture):
    student = make_student(architecture, (8, 10))
    pixels = torch.rand(3, 3, *student.input_size)
    logits, saliency = student(pixels), student.saliency(pixels)
    for index in range(3):
        assert_close(student(pixels[index : index + 1])[0], logits[index], 1e-4)
    assert_close(saliency.sum(dim=(1, 2)), torch.ones(3))
    shares = logits.exp() / logits.exp().sum(dim=(1, 2), keepdim=True)
    assert_close(saliency, shares)


def test_downsample_is_the_mean_over_each_area():
    images = torch.arange(30.0).view(1, 1, 5, 6)
    expected = [
        [images[0, 0, y, x].mean() for x in (slice(3), slice(3, 6))] for y in (slice(2), slice(1, 4), slice(3, 5))
    ]
    assert_close(downsample(images, (3, 2))[0, 0], expected)  # areas that are not whole overlap
    assert_close(downsample(torch.tensor([[[[1.0, 2.0, 3.0, 5.0], [3.0, 2.0, 7.0, 9.0]]]]), (1, 2)), [[[[2.0, 6.0]]]])
    assert downsample(images, (5, 6)) is images


def test_summary_counts_parameters():
    summary = new_student("transformer", (2, 3), width=4).summary
    embedding, block, rest = 3 * 16 * 8 + 8 + 6 * 8, 2 * 16 + 4 * 8 * 8 + 4 * 8 + 2 * 8 * 32 + 40, 16 + 9 + 6
    expected = {"architecture": "transformer", "grid_size": [2, 3], "input_size": [8, 12]}
    assert summary == expected | {"parameters": embedding + 3 * block + rest}


@pytest.mark.parametrize("architecture", ["transformer", "convnet", "resnet18"])
def test_no_weight_decay_for_positions(architecture):
    student = new_student(architecture, (2, 2), width=4)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    spared = student.no_weight_decay() & set(names.values())
    assert spared == ({"position", "network.tokens.pos_embed"} if architecture == "transformer" else {"position"})
    groups = create_optimizer_v2(student, "adamw", lr=1e-3, weight_decay=0.05).param_groups
    decay = {names[id(parameter)]: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decay.keys() == set(names.values())
    assert {decay[name] for name in spared} == {0}
    assert decay["network.head.weight"] == 0.05


@pytest.mark.parametrize("pretrained", [False, True])
def test_unknown_architecture_suggests_the_nearest(pretrained):
    for name, nearest in [("resnet188", "resnet18"), ("convnt", "convnet"), ("transfomer", "transformer")]:
        with pytest.raises(UserError, match=f"Unknown architecture '{name}'. Did you mean '{nearest}'"):
            new_student(name, (4, 4), pretrained=pretrained)


@pytest.mark.parametrize(
    ("architecture", "options", "said"),
    [
        (
            "transformer",
            {"input_size": (14, 20)},
            r"input, \(14, 20\), must be a multiple of its grid, \(3, 5\): \(12, 20\)",
        ),
        ("transformer", {"input_size": (1, 5)}, r"input, \(1, 5\), must be a multiple"),
        ("transformer", {"width": 5}, "width"),  # four heads share twice the width
        ("convnet", {"pretrained": True}, "convnet student has no pretrained weights; name a timm model instead"),
        ("transformer", {"pretrained": True}, "transformer student has no pretrained weights"),
        ("vit_tiny_patch16_224", {}, "'vit_tiny_patch16_224' .* backbone"),  # its patches are larger than 12 x 20
        ("xcit_nano_12_p16_224", {}, "'xcit_nano_12_p16_224' .* backbone"),  # its patches must fill the image
        ("hrnet_w18_small", {}, "'hrnet_w18_small' .* backbone"),  # its halves must be whole
        ("vit_tiny_r_s16_p8_224", {}, "'vit_tiny_r_s16_p8_224' .* backbone"),  # its stem's maps must fill its patches
    ],
)
def test_what_cannot_be_a_student(architecture, options, said):
    with pytest.raises(UserError, match=said):
        new_student(architecture, (3, 5), **options)


def test_pretrained_student_has_the_weights_and_the_pixel_scale_of_its_timm_model(monkeypatch, tmp_path):
    """timm's hub stands still: what would be fetched is made here."""
    plain, trained = timm.create_model, {}

    def fetch(name, pretrained=False, **options):
        model = plain(name, **options)
        return trained.setdefault(name, randomise(model, seed=7)) if pretrained else model

    monkeypatch.setattr(timm, "create_model", fetch)
    name = "vit_tiny_patch16_224"  # augreg's: normalised by 0.5, not by ImageNet's mean
    student = new_student(name, (8, 8), pretrained=True)
    assert_close(student.mean.flatten(), [0.5, 0.5, 0.5])
    assert_close(student.std.flatten(), [0.5, 0.5, 0.5])
    state = student.network.backbone.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in trained[name].state_dict().items())
    save_student(student, tmp_path)
    assert_close(load_student(tmp_path).mean.flatten(), [0.5, 0.5, 0.5])


def test_pretrained_weights_that_cannot_be_had():
    with pytest.raises(UserError, match="'resnet10t' cannot be a student's backbone"):  # the hub is switched off
        new_student("resnet10t", (4, 4), pretrained=True)


def by_area(images, factor):
    batch, channels, height, width = images.shape
    return images.view(batch, channels, height // factor, factor, width // factor, factor).mean(dim=(3, 5))


@torch.no_grad()
def test_guide_is_the_students_saliency_of_downsampled_pixels(tiny_vit, images):
    student = make_student(grid_size=(4, 4))
    pixels = by_area(images, 4) * 0.5 + 0.5  # tiny_vit's normalisation undone
    logits = student(pixels)
    shares = logits.exp() / logits.exp().sum(dim=(1, 2), keepdim=True)
    saliency = make_guide("student", tiny_vit, student=student)(images)
    assert_close(saliency, shares)
    assert saliency.flatten(1).std(dim=1).min() > 0.01
    alone = StudentGuide(student, tiny_vit)(images[1:2])
    assert_close(alone, saliency[1:2])


@torch.no_grad()
@pytest.mark.parametrize("grid_size", [(8, 8), (2, 4), (3, 5)])
def test_guide_lays_its_map_on_the_targets_grid(grid_size):
    target = load_model("vit_tiny_patch16_224", pretrained=False, img_size=(96, 64), depth=1)
    student, images = make_student(grid_size=grid_size), torch.randn(2, 3, 96, 64)
    pixels = F.adaptive_avg_pool2d(images * 0.5 + 0.5, student.input_size)
    laid = StudentGuide(student, target)(images)
    assert laid.shape == (2, 6, 4)
    assert_close(laid, lay(student.saliency(pixels), (6, 4)))


def test_guide_without_a_student(tiny_vit):
    with pytest.raises(UserError, match=r"needs a student: a folder or a hub name that holds one \(--student\)"):
        make_guide("student", tiny_vit)
