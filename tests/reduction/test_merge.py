"""Token merging against the paper's words, written out one image and one token at a time."""

import math

import pytest
import torch
from families import FAMILIES, RELATIVE, Family, family_fixture
from helpers import assert_close, randomise, traces
from torch.nn.functional import cosine_similarity

from vitsal.data.images import batches
from vitsal.data.opening import open_data
from vitsal.errors import UserError
from vitsal.guides.attention import fused_attention, record_attention
from vitsal.models.loading import load_model
from vitsal.models.tokens import model_transform
from vitsal.reduction.drop import forward_kept, keep_patches
from vitsal.reduction.merge import (
    class_attention,
    match_tokens,
    merge_groups,
    merge_schedule,
    merge_tokens,
    num_mergeable,
)
from vitsal.reduction.surgery import replaced

MERGED = {name: family for name, family in FAMILIES.items() if not name.startswith(RELATIVE)}
MERGED["EVA-01"] = Family("eva_large_patch14_196", readout="patches", size=(98, 98))  # EVA without rotary positions
QUICK = ("ViT tiny", "ViT not square", "DeiT distilled", "DeiT-III", "DINO", "DINOv2 registers")
family = family_fixture(MERGED, QUICK)


def slow_clusters(keys, prefix, number, heeded=None):
    """Which of one image's tokens become one, in the order of what is left: keys (N, d) -> lists of token numbers.

    `heeded`: class attention, (N,); of a pair's similarity a tenth of the mean log of its two is taken away.
    """
    number = min(number, (len(keys) - prefix) // 2)
    if not number:
        return [[token] for token in range(len(keys))]
    set_a = [token for token in range(prefix, len(keys)) if token % 2 == 0]
    set_b = [token for token in range(prefix, len(keys)) if token % 2 == 1]
    edges = []
    for token in set_a:  # "draw one edge from each token in A to its most similar token in B"
        similar = [cosine_similarity(keys[token], keys[other], dim=0).item() for other in set_b]
        partner = set_b[similar.index(max(similar))]
        cost = 0 if heeded is None else 0.1 * (math.log(heeded[token]) + math.log(heeded[partner])) / 2
        edges.append((max(similar) - cost, token, partner))
    edges = sorted(edges, key=lambda edge: -edge[0])[:number]  # "the r most similar"
    partner = {token: other for _, token, other in edges}
    left = [*range(prefix), *(token for token in set_a if token not in partner), *set_b]
    return [[token, *(source for source in partner if partner[source] == token)] for token in left]


def slow_blocks(model, tokens, schedule, sparing):
    """One image's tokens (N, C) through all blocks; (tokens that are left, what each is made of)."""
    members = [[token] for token in range(len(tokens))]
    for block, number in zip(model.blocks, schedule, strict=True):
        attention = block.attn
        qkv = torch.nn.functional.linear(block.norm1(tokens), attention.qkv.weight, qkv_bias(attention))
        queries, keys, values = qkv.unflatten(1, (3, attention.num_heads, -1)).permute(1, 2, 0, 3)
        queries, keys = attention.q_norm(queries), attention.k_norm(keys)
        logits = queries @ keys.mT / math.sqrt(queries.shape[-1])
        logits = logits + torch.tensor([math.log(len(member)) for member in members])  # equation 1
        mixed = (logits.softmax(dim=-1) @ values).transpose(0, 1).flatten(1)
        tokens = tokens + scale(block, 1) * attention.proj(attention.norm(mixed))
        heeded = logits.softmax(dim=-1)[:, 0].mean(dim=0) if sparing else None  # by the class token
        clusters = slow_clusters(keys.mean(dim=0), model.num_prefix_tokens, number, heeded)
        tokens = torch.stack(
            [
                sum(len(members[token]) * tokens[token] for token in cluster)
                / sum(len(members[token]) for token in cluster)
                for cluster in clusters
            ]
        )
        members = [[member for token in cluster for member in members[token]] for cluster in clusters]
        tokens = tokens + scale(block, 2) * block.mlp(block.norm2(tokens))
    return tokens, members


def qkv_bias(attention):
    if getattr(attention, "q_bias", None) is not None:  # EVA's
        return torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias])
    return attention.qkv.bias


def scale(block, half):
    if hasattr(block, "ls1"):
        return getattr(getattr(block, f"ls{half}"), "gamma", 1)
    gamma = getattr(block, f"gamma_{half}")
    return 1 if gamma is None else gamma


def slow_forward(model, image, schedule, keep=None, sparing=False):
    """Logits of one image (3, H, W), and what each token that is left is made of."""
    embedded = model._pos_embed(model.patch_embed(image[None]))
    tokens = (embedded[0] if isinstance(embedded, tuple) else embedded)[0]
    if keep is not None:
        tokens = torch.cat([tokens[: model.num_prefix_tokens], tokens[model.num_prefix_tokens :][keep]])
    tokens, members = slow_blocks(model, model.norm_pre(tokens), schedule, sparing)
    tokens = model.norm(tokens)
    if hasattr(model, "head_dist"):
        return (model.head(tokens[0]) + model.head_dist(tokens[1])) / 2, members
    if model.attn_pool is not None:  # each token as often as it stands for
        repeated = [token for token, made in zip(tokens, members, strict=True) for _ in made]
        pooled = model.attn_pool(torch.stack(repeated)[None])[0]
    elif model.global_pool == "avg":
        patches = list(zip(tokens, members, strict=True))[model.num_prefix_tokens :]
        pooled = sum(len(made) * token for token, made in patches) / sum(len(made) for _, made in patches)
    else:
        pooled = tokens[0]
    return model.head(model.fc_norm(pooled)), members


def check_against_paper(model, images, schedule, keep=None, sparing=False):
    """Logits, sizes and groups of a batch against those of its images, one at a time."""
    with torch.no_grad(), merge_tokens(model, " ".join(map(str, schedule)) + "c" * sparing) as merged:
        logits = model(images) if keep is None else forward_kept(model, images, keep)
        for index, image in enumerate(images):
            expected, members = slow_forward(model, image, schedule, None if keep is None else keep[index], sparing)
            assert_close(logits[index], expected, 1e-5 * expected.abs().max().clamp(min=1).item())
            assert merged.sizes[index].tolist() == [len(member) for member in members]
            token_of = {member: token for token, made in enumerate(members) for member in made}
            patches = range(model.num_prefix_tokens, len(token_of))
            assert merged.groups[index].tolist() == [token_of[patch] for patch in patches]
    return logits, merged


def test_matching_by_hand():
    """Two prefix tokens; A is 2, 4, 6 and B is 3, 5. Most similar: 6 to 3 (same direction), then 2 to 5."""
    keys = torch.tensor([[1.0, 0], [1, 0], [0, 1], [3, 0], [-1, 1], [0.3, 1], [1, 0]])[None]
    assert match_tokens(keys, 2, 1).tolist() == [[0, 1, 2, 4, 3, 5, 4]]
    assert match_tokens(keys, 2, 2).tolist() == [[0, 1, 4, 3, 2, 4, 3]]
    assert num_mergeable(7, 2) == 2


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("number_tokens", [7, 12, 30])
def test_matching_and_mean_of_random_tokens(prefix, number_tokens):
    keys, tokens = torch.randn(3, number_tokens, 8), torch.randn(3, number_tokens, 6)
    sizes = torch.randint(1, 9, (3, number_tokens))
    for number in {1, num_mergeable(number_tokens, prefix)}:
        groups = match_tokens(keys, prefix, number)
        merged, merged_sizes = merge_groups(tokens, sizes, groups, number_tokens - number)
        for image in range(3):
            clusters = slow_clusters(keys[image], prefix, number)
            assert merged_sizes[image].tolist() == [sum(sizes[image][t].item() for t in c) for c in clusters]
            for token, cluster in enumerate(clusters):
                assert groups[image, cluster].tolist() == [token] * len(cluster)
                weights = sizes[image, cluster] / sizes[image, cluster].sum()
                assert_close(merged[image, token], (weights[:, None] * tokens[image, cluster]).sum(dim=0), 1e-6)


def test_mean_by_hand():
    """Sizes 1 and 3: (1 * 8 + 3 * 4) / 4."""
    tokens = torch.tensor([[[8.0], [5.0], [4.0]]])
    merged, sizes = merge_groups(tokens, torch.tensor([[1, 2, 3]]), torch.tensor([[1, 0, 1]]), 2)
    assert merged.tolist() == [[[5.0], [5.0]]]
    assert sizes.tolist() == [[2, 4]]


def test_equally_similar_tokens_are_merged_in_order():
    assert match_tokens(torch.ones(1, 6, 2), 0, 2).tolist() == [[1, 1, 1, 2, 0, 3]]


def test_supported_families_are_the_papers(family, model, pictures):
    schedule = (7, 100, 0)[: family.depth]
    _, merged = check_against_paper(model, pictures, schedule)
    num_tokens = family.prefix + model.patch_embed.num_patches
    assert (merged.sizes.sum(dim=1) == num_tokens).all()
    assert (merged.sizes[:, : family.prefix] == 1).all()


def test_what_the_class_token_attends_to_is_spared(family, model, pictures):
    schedule = (7, 100, 0)[: family.depth]
    if family.readout == "patches":
        said = f"Merging in {family.name} cannot spare what its class token attends to.* Leave the 'c' out"
        with pytest.raises(UserError, match=said), merge_tokens(model, "3c"):
            pass
        return
    logits, _ = check_against_paper(model, pictures, schedule, sparing=True)
    with torch.no_grad(), merge_tokens(model, schedule):
        assert not torch.allclose(model(pictures), logits)


def test_sparing_by_hand():
    """Pairs are 0 with 1, similar by 1, and 2 with 3, by 0.8: the first is merged until it counts for 0.2 less."""
    keys = torch.tensor([[1.0, 0], [1, 0], [0.6, -0.8], [0, -1]])[None]
    first, second = [[1, 1, 0, 2]], [[0, 1, 2, 2]]
    for spared, merged in [
        ([0, 0, 0, 0], first),
        ([0.3, 0, 0, 0], first),
        ([0.5, 0, 0, 0], second),
        ([0, 0.5, 0, 0], second),
        ([0.5, 0, 0, 0.2], first),
    ]:
        assert match_tokens(keys, 0, 1, torch.tensor([spared])).tolist() == merged


def test_class_attention_by_hand():
    """Logits 0 and ln 3, and ln 2 for a token of size 2: a third each from 1 : 2 and 3 : 2 in two heads."""
    query = torch.tensor([[[1.0]], [[2.0]]])[None]
    keys = torch.tensor([[[0.0], [0.0]], [[math.log(3) / 2], [0.0]]])[None]
    attention = class_attention(query, keys, torch.tensor([[1, 2]]))
    assert_close(attention, torch.tensor([[(1 / 3 + 3 / 5) / 2, (2 / 3 + 2 / 5) / 2]]))


def test_many_merged_into_one(tiny_vit, images):
    """Three blocks that each merge half: 16 patches, 8, 4, 2."""
    _, merged = check_against_paper(tiny_vit, images, (8, 8, 8))
    assert merged.sizes.shape == (4, 3)
    for sizes, groups in zip(merged.sizes, merged.groups, strict=True):
        assert groups.bincount(minlength=3)[1:].tolist() == sizes[1:].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("sparing", [False, True])
@pytest.mark.parametrize("schedule", ["16", "16-", "40@9"])
def test_real_model_is_the_papers(deit_tiny, imagenet_sample, schedule, sparing):
    images = next(batches(open_data(str(imagenet_sample), model_transform(deit_tiny)), batch_size=2, limit=2)).images
    check_against_paper(deit_tiny, images, merge_schedule(schedule, 12), sparing=sparing)


@torch.no_grad()
def test_nothing_merged_is_the_model_itself(family, model, pictures):
    whole = model(pictures)
    with merge_tokens(model, 0) as merged:
        assert torch.equal(model(pictures), whole)
    patches = model.patch_embed.num_patches
    assert torch.equal(merged.sizes, torch.ones(3, family.prefix + patches))
    assert merged.groups.tolist() == [list(range(family.prefix, family.prefix + patches))] * 3


def test_tokens_are_laid_out_again_only_for_pools_that_read_patches(family, model):
    with merge_tokens(model, 4):
        assert ("pool" in vars(model)) == (family.readout == "patches")


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.startswith(RELATIVE)])
def test_other_positions_are_refused(name):
    model = FAMILIES[name].load()
    before = traces(model)
    kind = "relative" if "BEiT" in name else "rotary"
    said = f"The tokens of {FAMILIES[name].name} cannot be merged: it has {kind} positions.* a smaller image instead"
    with pytest.raises(UserError, match=said), merge_tokens(model, 4):
        pass
    assert traces(model) == before


def test_unknown_blocks_are_refused():
    model = load_model("vit_small_patch16_18x2_224", pretrained=False, img_size=64, depth=1, embed_dim=48, num_heads=3)
    said = r"a kind that merging does not know \(ParallelThingsBlock\). Drop patches"
    with pytest.raises(UserError, match=said), merge_tokens(model, 1):
        pass
    model = load_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=64, depth=1, embed_dim=48, num_heads=4, attn_layer="diff"
    )
    with pytest.raises(UserError, match=r"does not know \(Block with DiffAttention\)"), merge_tokens(model, 1):
        pass


def test_merging_among_kept_patches(tiny_vit, images):
    keep = torch.rand(4, 16).argsort(dim=1)[:, :9].sort(dim=1).values
    logits, merged = check_against_paper(tiny_vit, images, (3, 0, 2), keep)
    assert merged.groups.shape == (4, 9)
    with torch.no_grad(), keep_patches(tiny_vit, keep), merge_tokens(tiny_vit, "3 0 2"):
        assert torch.equal(tiny_vit(images), logits)


@torch.no_grad()
def test_mean_of_kept_and_merged_patches():
    model = MERGED["MAE fine-tuned"].load()
    keep = torch.rand(2, 36).argsort(dim=1)[:, :11]
    check_against_paper(model, torch.randn(2, 3, 96, 96), (4, 3), keep)


@torch.no_grad()
@pytest.mark.parametrize("name", ["ViT tiny", "SigLIP"])
def test_fused_attention_equals_its_slow_form(name):
    model, images = MERGED[name].load(), torch.randn(2, 3, 96, 96)
    with merge_tokens(model, 6):
        fused = model(images)
        with fused_attention([block.attn for block in model.blocks], False):
            assert_close(model(images), fused)


@torch.no_grad()
def test_a_token_of_size_two_attends_like_two_alike():
    """Proportional attention and the mean: merging tokens that are equal changes nothing."""
    model = randomise(load_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=3, global_pool="avg"))
    model.pos_embed.zero_()
    image = torch.randn(1, 3, 64, 16).repeat(1, 1, 1, 4)  # every row of patches has 4 equal ones
    whole = model(image)
    with merge_tokens(model, (4, 4, 0)) as merged:
        assert_close(model(image), whole)
    assert merged.sizes.shape == (1, 9)


def test_recorded_attention_of_merged_tokens(tiny_vit, images):
    with torch.no_grad(), merge_tokens(tiny_vit, (4, 4, 4)), record_attention(tiny_vit) as maps:
        tiny_vit(images)
    assert [attention.shape[-1] for attention in maps] == [17, 13, 9]
    assert_close(maps[-1].sum(dim=-1), torch.ones(4, 3, 9))


def test_every_forward_pass_starts_anew(tiny_vit, images):
    before = traces(tiny_vit)
    with torch.no_grad():
        whole = tiny_vit(images)
        with merge_tokens(tiny_vit, 4) as merged:
            first = tiny_vit(images)
            single = tiny_vit(images[:1])
            assert merged.sizes.shape == (1, 5)
            assert torch.equal(tiny_vit(images), first)
        assert_close(single[0], first[0])
        assert not torch.allclose(first, whole)
        assert torch.equal(tiny_vit(images), whole)
    assert traces(tiny_vit) == before


@pytest.mark.parametrize("broken", ["attn.proj", "mlp"])
def test_no_trace_after_an_exception(tiny_vit, images, broken):
    before, state = traces(tiny_vit), {name: value.clone() for name, value in tiny_vit.state_dict().items()}
    with replaced(tiny_vit.blocks[1].get_submodule(broken), "forward", None), pytest.raises(TypeError):
        run_merged(tiny_vit, images)
    assert traces(tiny_vit) == before
    assert all(torch.equal(value, state[name]) for name, value in tiny_vit.state_dict().items())


def run_merged(model, images):
    with torch.no_grad(), merge_tokens(model, 4):
        model(images)


def test_gradients_flow_through_merged_tokens(tiny_vit, images):
    """To every patch of the images and to every parameter; each as finite differences have it."""
    tiny_vit.double()
    images = images.double().requires_grad_()
    with merge_tokens(tiny_vit, 4):
        loss = tiny_vit(images).square().sum()
        loss.backward()
        step = 1e-6 * torch.randn_like(images)
        moved = tiny_vit(images.detach() + step).square().sum() - tiny_vit(images.detach() - step).square().sum()
    assert_close((images.grad * step).sum() / moved.item(), 0.5, 1e-4)
    assert images.grad.unfold(2, 16, 16).unfold(3, 16, 16).abs().amax(dim=(1, 4, 5)).min() > 0
    assert all(parameter.grad.isfinite().all() for parameter in tiny_vit.parameters())
    assert all(parameter.grad.abs().max() > 0 for parameter in tiny_vit.parameters())


@torch.inference_mode()
def test_half_precision(tiny_vit, images):
    with merge_tokens(tiny_vit, (2, 0, 0)):
        exact = tiny_vit(images)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = tiny_vit(images)
        with fused_attention([block.attn for block in tiny_vit.blocks], False), torch.autocast("cpu", torch.bfloat16):
            assert (tiny_vit(images) - exact).abs().mean() < 0.05 * exact.abs().mean()
        half = tiny_vit.bfloat16()(images.bfloat16())
    assert autocast.dtype == half.dtype == torch.bfloat16
    for rounded in (autocast, half):
        assert (rounded - exact).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize(
    ("spec", "depth", "expected"),
    [
        ("16", 3, (16, 16, 16)),
        (16, 2, (16, 16)),
        ("0", 2, (0, 0)),
        ("16-", 12, (32, 29, 26, 23, 20, 17, 14, 11, 8, 5, 2, 0)),  # 32 - 32 / 11 * i, rounded down
        ("8-", 12, (16, 14, 13, 11, 10, 8, 7, 5, 4, 2, 1, 0)),
        ("3-", 4, (6, 4, 2, 0)),
        ("8@2", 4, (0, 0, 8, 8)),
        ("8@0", 2, (8, 8)),
        ("3 2 1", 3, (3, 2, 1)),
        (" 3  2 1 ", 3, (3, 2, 1)),
        ("3 2 1c", 3, (3, 2, 1)),
        ("16-c", 3, (32, 16, 0)),
        ([3, 2, 1], 3, (3, 2, 1)),
        ((5,), 1, (5,)),
    ],
)
def test_schedules(spec, depth, expected):
    assert merge_schedule(spec, depth) == expected


@pytest.mark.parametrize(
    "spec",
    [
        *("-1", -1, "", "many", "1.5", 1.5, True, None, "nan", "16--", "16,16,16", "16 c", "c16", "c", "16cc"),
        *("9" * 5000, "\uff11\uff16"),
        *("8@3", "8@-1", "@2", "1 2", "1 2 3 4", "1 , 3", "1 -2 3", [16], [1, 2.5, 3], []),
    ],
)
def test_schedules_that_are_none(spec):
    with pytest.raises(UserError, match=r"whole numbers: '16' in every block.* 0 to 2\), or 3 numbers.* got "):
        merge_schedule(spec, 3)


@torch.no_grad()
def test_more_than_there_is_is_capped(tiny_vit, images):
    with merge_tokens(tiny_vit, 999_999_999) as merged:
        most = tiny_vit(images)
    assert merged.sizes.shape == (4, 3)
    with merge_tokens(tiny_vit, (8, 4, 2)):
        assert torch.equal(tiny_vit(images), most)


@torch.no_grad()
def test_a_single_patch_has_none_to_merge_with(tiny_vit, images):
    keep = torch.tensor([[5]]).expand(4, -1)
    alone = forward_kept(tiny_vit, images, keep)
    with merge_tokens(tiny_vit, 3) as merged:
        assert torch.equal(forward_kept(tiny_vit, images, keep), alone)
    assert merged.groups.tolist() == [[1]] * 4
