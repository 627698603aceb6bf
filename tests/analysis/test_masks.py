"""Shares, overlaps and disturbances of masks, against counts of booleans."""

import numpy as np
import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.errors import ArgumentError
from taskarith_fast.masks import Masks
from tests.loops.tiny import vit


def _masks(seed, density=0.3):
    g = torch.Generator().manual_seed(seed)
    return {name: torch.rand(p.shape, generator=g) < density for name, p in vit().named_parameters()}


def test_shares_are_counts_by_kind_and_depth():
    masks = _masks(0)
    found = ta.analysis.mask_share(Masks.pack(masks), split_qkv=False)
    assert list(zip(found.kind, found.depth, strict=True))[:3] == [
        ("class_embedding", -1), ("positional_embedding", -1), ("conv1.weight", -1)
    ]  # fmt: skip
    kinds, depths, table = found.table(found.density)
    assert depths == [-1, 0, 1] and "attn.in_proj_weight" in kinds
    mask = masks["transformer.resblocks.1.mlp.c_fc.bias"]
    assert table[kinds.index("mlp.c_fc.bias"), 2] == pytest.approx(float(mask.double().mean()))
    assert np.isnan(table[kinds.index("mlp.c_fc.bias"), 0])
    total = sum(int(m.sum()) for m in masks.values())
    _, _, shares = found.table(found.share)
    assert shares[kinds.index("mlp.c_fc.bias"), 2] == pytest.approx(int(mask.sum()) / total)
    assert found.share.sum() == pytest.approx(1) and found.numel.sum() == sum(m.numel() for m in masks.values())


def test_fused_projections_are_counted_by_thirds():
    masks = _masks(1)
    found = ta.analysis.mask_share(Masks.pack(masks))
    for name, shape in (("in_proj_weight", (3, 16, 16)), ("in_proj_bias", (3, 16))):
        mask = masks[f"transformer.resblocks.0.attn.{name}"].view(*shape)
        for letter, part in zip("qkv", mask, strict=True):
            (row,) = np.flatnonzero((found.kind == f"attn.{name} ({letter})") & (found.depth == 0))
            assert found.selected[row] == int(part.sum()) and found.numel[row] == part.numel()


@pytest.mark.parametrize(
    ("name", "kind", "depth"),
    [
        ("visual.transformer.resblocks.11.mlp.c_proj.weight", "mlp.c_proj.weight", 11),
        ("blocks.3.attn.proj.bias", "attn.proj.bias", 3),
        ("encoder.layer.7.norm1.weight", "norm1.weight", 7),
        ("vision_model.encoder.layers.2.mlp.fc1.weight", "mlp.fc1.weight", 2),
        ("patch_embed.proj.weight", "patch_embed.proj.weight", -1),
    ],
)
def test_names_of_every_library_are_understood(name, kind, depth):
    found = ta.analysis.mask_share(Masks.pack({name: torch.ones(6, dtype=torch.bool)}))
    assert (found.kind.tolist(), found.depth.tolist()) == ([kind], [depth])


def test_no_mask_has_no_share():
    assert ta.analysis.mask_share(Masks({}, {})).share.shape == (0,)
    empty = ta.analysis.mask_share(Masks.pack({"x": torch.zeros(4, dtype=torch.bool)}))
    assert empty.share.tolist() == [0] and empty.density.tolist() == [0]


@pytest.mark.parametrize("average", ["tensor", "global"])
@pytest.mark.parametrize("classes", ["selected", "both"])
def test_iou_is_that_of_booleans(average, classes):
    masks = [_masks(seed, density) for seed, density in ((0, 0.3), (1, 0.5), (2, 0.1))]
    for m in masks:
        m["ln_post.bias"][:] = False  # empty in all: IoU 1
    found = ta.analysis.mask_iou([Masks.pack(m) for m in masks], average=average, classes=classes)

    def iou(a, b):
        return float((a & b).sum()) / float((a | b).sum()) if (a | b).any() else 1.0

    for s in range(3):
        for t in range(3):
            pairs = [(masks[s][n].flatten(), masks[t][n].flatten()) for n in masks[s]]
            if average == "global":
                pairs = [tuple(torch.cat(side) for side in zip(*pairs, strict=True))]
            each = [(iou(a, b) + iou(~a, ~b)) / 2 if classes == "both" else iou(a, b) for a, b in pairs]
            assert found[s, t] == pytest.approx(np.mean(each), abs=1e-12)
    np.testing.assert_array_equal(found, found.T)


def test_masks_of_other_tensors_are_refused():
    one = Masks.pack({"x": torch.ones(3, dtype=torch.bool)})
    other = Masks.pack({"x": torch.ones(4, dtype=torch.bool)})
    with pytest.raises(ArgumentError, match=r"same tensors, but masks\[1\] and masks\[0\] differ"):
        ta.analysis.mask_iou([one, other])


def test_pruning_zeroes_what_is_selected_and_nothing_else():
    state, masks = vit().state_dict(), _masks(0)
    masks["ln_post.bias"][:] = False
    found = ta.analysis.pruned(state, Masks.pack(masks))
    assert "ln_post.bias" not in found and len(found) == len(masks) - 1
    for name, tensor in found.items():
        assert torch.equal(tensor, state[name] * ~masks[name])


@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("spread", ["deviation", "variance"])
def test_noise_has_the_size_asked_for(scope, spread):
    g = torch.Generator().manual_seed(0)
    state = {"a": 0.1 * torch.randn(300, 300, generator=g) + 5, "b": 0.4 * torch.randn(300, 300, generator=g)}
    masks = {name: torch.rand(300, 300, generator=g) < 0.5 for name in state}
    found = ta.analysis.perturbed(state, Masks.pack(masks), factor=2, spread=spread, scope=scope)
    for name, tensor in found.items():
        assert torch.equal(tensor[~masks[name]], state[name][~masks[name]])
        names = [name] if scope == "tensor" else list(state)
        sigma = float(torch.cat([state[n][masks[n]] for n in names]).double().std(correction=0))
        size = 2 * sigma if spread == "deviation" else (2 * sigma) ** 0.5
        noise = (tensor - state[name])[masks[name]].double()
        assert float(noise.std()) == pytest.approx(size, rel=0.02) and abs(float(noise.mean())) < 0.02 * size


def test_noise_depends_on_seed_and_name_alone():
    state, masks = vit().state_dict(), Masks.pack(_masks(0))
    one, two = (ta.analysis.perturbed(state, masks) for _ in range(2))
    other = ta.analysis.perturbed(state, masks, seed=1)
    name = "transformer.resblocks.0.mlp.c_fc.weight"
    assert torch.equal(one[name], two[name]) and not torch.equal(one[name], other[name])
    alone = ta.analysis.perturbed(state, Masks({name: masks.packed(name)}, {name: masks.shape(name)}), scope="tensor")
    assert torch.equal(alone[name], ta.analysis.perturbed(state, masks, scope="tensor")[name])


def test_masks_that_do_not_fit_are_refused():
    masks = Masks.pack({"x": torch.ones(3, dtype=torch.bool)})
    for change in (ta.analysis.pruned, ta.analysis.perturbed):
        with pytest.raises(ArgumentError, match=r"x must have shape \[3\] in the state, got no such tensor"):
            change({}, masks)
        with pytest.raises(ArgumentError, match=r"x must have shape \[3\] in the state, got \[2\]"):
            change({"x": torch.ones(2)}, masks)
    with pytest.raises(ArgumentError, match="factor must be finite and at least 0, got -1"):
        ta.analysis.perturbed({"x": torch.ones(3)}, masks, factor=-1)
