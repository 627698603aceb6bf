"""Calibration: exact counts, nested rounds, the published example, untouched weights, an independent TaLoS."""

import copy
import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

from taskarith_fast import Masks, calibrate
from taskarith_fast.errors import ArgumentError, CheckpointError, TaskarithError
from taskarith_fast.loops import calibrate as module
from taskarith_fast.loops.files import EncoderChoice, calibrate_to_file, probe_to_file
from taskarith_fast.models import random_head
from taskarith_fast.models.maskable import maskable_names
from taskarith_fast.progress import SILENT
from tests.capture.by_the_book import squares
from tests.loops.tiny import digits, vit
from tests.models.tiny import FAMILIES, tiny_encoder


@pytest.fixture
def model():
    return vit()


@pytest.fixture
def head():
    return random_head(16, 4, seed=0)


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(2)]
    return [(x, torch.randint(0, 4, (4,), generator=generator)) for x in images]


def _flat(masks):
    return torch.cat([mask.reshape(-1) for mask in masks.values()])


def test_the_published_example_keeps_its_counts_round_by_round(monkeypatch):
    """950 weights at density 0.1 in four rounds, as the official code cuts them."""
    layer = nn.Sequential(nn.Flatten(1), nn.Linear(18, 50))
    rounds, choose = [], module.bottom_k_mask
    monkeypatch.setattr(
        module, "bottom_k_mask", lambda *args, **options: rounds.append(choose(*args, **options)) or rounds[-1]
    )
    masks = calibrate(layer, [torch.randn(6, 2, 3, 3)], maskable=["1.weight", "1.bias"])
    kept = [
        torch.cat(
            [
                torch.from_numpy(np.unpackbits(bits.numpy(), bitorder="little", count=n))
                for bits, n in zip(r, (900, 50), strict=True)
            ]
        )
        for r in rounds
    ]
    assert [int(k.sum()) for k in kept] == [534, 300, 168, 95] == [*[int(0.1 ** (r / 4) * 950) for r in (1, 2, 3)], 95]
    assert all(not (later & ~earlier & 1).any() for earlier, later in itertools.pairwise(kept))
    assert torch.equal(_flat(masks), kept[-1].bool())


@pytest.mark.parametrize("score", ["logprob", "logit"])
def test_masks_are_those_of_a_per_sample_loop(model, head, batches, score):
    density, rounds, soft = 0.05, 3, 0.1
    ours = calibrate(
        model, batches, head=head, density=density, rounds=rounds, soft_mask=soft, labels="label", score=score
    )
    names = list(ours)
    kept = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters() if name in names}
    total = sum(k.numel() for k in kept.values())
    for r in range(1, rounds + 1):
        masked = copy.deepcopy(model)
        with torch.no_grad():
            for name, p in masked.named_parameters():
                if name in kept:
                    p.mul_(torch.where(kept[name], 1.0, soft))
        scores = {name: 0.0 for name in names}
        for images, labels in batches:
            value = lambda y, b, labels=labels: (head(y).log_softmax(-1) if score == "logprob" else head(y))[labels[b]]  # noqa: E731
            part = squares(masked, images, value)
            scores = {name: s + part[name] for name, s in scores.items()}
        flat = torch.cat([torch.where(kept[name], scores[name], torch.inf).reshape(-1) for name in names])
        chosen = torch.zeros(total, dtype=torch.bool)
        chosen[flat.argsort()[: int(density ** (r / rounds) * total)]] = True
        parts = chosen.split([kept[name].numel() for name in names])
        kept = {name: part.view(kept[name].shape) for name, part in zip(names, parts, strict=True)}
    theirs = Masks.pack(kept)
    assert ours.count() == theirs.count() == int(density * total)
    assert ours.iou(theirs) > 0.97  # scores that differ by rounding alone may change places


@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_the_asked_number_is_kept_of_every_familys_maskable_weights(family):
    torch.manual_seed(0)
    encoder = tiny_encoder(family)
    images = torch.randn(2, 3, encoder.image_size, encoder.image_size)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    masks = calibrate(encoder, [images], density=0.3, rounds=2)
    names = [name for name, _ in encoder.named_parameters()]
    frozen = [name for name in names if name not in masks]
    assert list(masks) == [name for name in names if name in masks]
    assert masks.count() == int(0.3 * masks.numel)
    assert frozen and all(any(w in n for w in ("embed", "token", "gamma", "lambda", "proj")) for n in frozen), frozen
    assert not any("attn" in name or "attention" in name or "mlp" in name for name in frozen)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_the_same_seed_gives_the_same_masks_and_another_gives_others(model, head, batches):
    options = {"head": head, "density": 0.2, "rounds": 2}
    one, two = (calibrate(model, batches, **options) for _ in range(2))
    assert one == two
    assert one != calibrate(model, batches, **options, seed=1)
    split = calibrate(model, batches, **options, batch_split=3, checkpoint_activations=True)
    assert one.iou(split) > 0.97


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_weights_are_untouched_when_a_later_round_is_interrupted(model, head, batches, error):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters, calls = dict(model.named_parameters()), []

    def failing(features):
        calls.append(features)
        if len(calls) == 2 * len(batches):  # the second round: soft masks are in force
            raise error
        return head(features)

    with pytest.raises(error):
        calibrate(model, batches, head=failing, rounds=2)
    assert all(parameters[name] is p and p.requires_grad for name, p in model.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()) and model.training


def test_soft_masks_act_on_the_forward_pass_of_later_rounds(model, head, batches):
    outputs = []

    def noting(features):
        outputs.append(features.detach().clone())
        return head(features)

    calibrate(model, batches[:1], head=noting, rounds=2, soft_mask=0.0, density=0.01)
    calibrate(model, batches[:1], head=noting, rounds=2, soft_mask=1.0, density=0.01)
    first, masked, again, unmasked = outputs
    assert torch.equal(first, again) and torch.equal(first, unmasked)
    assert not torch.allclose(masked, first, rtol=1e-2)


def test_lota_keeps_what_fine_tuning_changed_most(model):
    torch.manual_seed(1)
    finetuned = {name: value + 0.01 * torch.randn_like(value) for name, value in model.state_dict().items()}
    masks = calibrate(model, method="lota", finetuned=finetuned, density=0.1)
    change = torch.cat(
        [(finetuned[n] - p.detach()).abs().reshape(-1) for n, p in model.named_parameters() if n in masks]
    )
    assert change[_flat(masks)].min() >= change[~_flat(masks)].max() and masks.count() == int(0.1 * masks.numel)


@pytest.mark.parametrize("largest", [True, False])
def test_magnitude_keeps_the_largest_or_the_smallest_weights(model, largest):
    masks = calibrate(model, method="magnitude", largest=largest, density=0.25)
    size = torch.cat([p.detach().abs().reshape(-1) for n, p in model.named_parameters() if n in masks])
    kept, dropped = size[_flat(masks)], size[~_flat(masks)]
    assert kept.min() >= dropped.max() if largest else kept.max() <= dropped.min()


def test_random_masks_depend_on_the_seed_and_are_spread_evenly(model):
    masks = calibrate(model, method="random", density=0.5)
    assert masks == calibrate(model, method="random", density=0.5)
    assert 0.25 < masks.iou(calibrate(model, method="random", density=0.5, seed=1)) < 0.42
    weight = "transformer.resblocks.0.mlp.c_fc.weight"
    assert abs(masks.count(weight) / 1024 - 0.5) < 0.1


def test_unmaskable_parameters_are_left_out_or_trained_whole(model):
    names = [name for name, _ in model.named_parameters()]
    frozen = calibrate(model, method="random")
    whole = calibrate(model, method="random", freeze_unmaskable=False)
    assert list(whole) == names and set(frozen) == set(maskable_names(names)) < set(names)
    for name in names:
        assert torch.equal(whole[name], frozen[name]) if name in frozen else bool(whole[name].all())


def test_layers_of_which_nothing_is_kept_have_empty_masks(model):
    masks = calibrate(model, method="magnitude", density=1e-3)
    assert masks.count() == int(1e-3 * masks.numel) and any(masks.count(name) == 0 for name in masks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, "density must be above 0 and at most 1, got 0.0"),
        ({"density": 1e-9}, "density 1e-09 keeps none of 7376 maskable weights; try 0.00014"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"soft_mask": 2}, r"soft_mask must be in \[0, 1\], got 2"),
        ({"batches": None}, "batches must be given for the method 'talos'"),
        ({"batches": iter([])}, "batches must last for 4 rounds, got an iterator"),
        ({"batches": []}, "batches must yield at least one image"),
        ({"method": "best"}, "method must be one of talos, lota, magnitude, random; got 'best'"),
        ({"score": "loss"}, "score must be one of logprob, logit; got 'loss'"),
        ({"method": "lota"}, "finetuned must be given for the method 'lota'"),
        ({"finetuned": {}}, "finetuned must be given for the method 'lota', and for it only; got method='talos'"),
        ({"method": "lota", "finetuned": {}}, "finetuned: it must have conv1.weight"),
        (
            {"method": "lota", "finetuned": {"conv1.weight": torch.zeros(2)}},
            r"conv1.weight must have shape \[16, 3, 4, 4\]",
        ),
        ({"maskable": ["nothing"]}, "maskable: nothing is no parameter of the model"),
    ],
)
def test_mistakes_are_named(model, batches, options, message):
    with pytest.raises(ArgumentError, match=message):
        calibrate(model, **({"batches": batches} | options))


def test_a_weight_that_is_not_a_number_is_named(model):
    with torch.no_grad():
        model.ln_post.weight[3] = torch.nan
    with pytest.raises(ArgumentError, match=r"ln_post.weight: its score must not be NaN"):
        calibrate(model, method="magnitude")


def test_a_model_without_maskable_names_is_refused():
    with pytest.raises(ArgumentError, match=r"got 2 names such as 0.weight, 0.bias; name them with maskable="):
        calibrate(nn.Sequential(nn.Linear(3, 3)), method="random")


class _Choice(EncoderChoice):
    def load(self):
        return vit()


def test_files_hold_the_masks_and_their_settings(tmp_path):
    choice, task = _Choice("tiny"), digits()
    head, out = tmp_path / "head.safetensors", tmp_path / "masks.safetensors"
    common = {"overwrite": False, "progress": SILENT}
    probe_to_file(choice, task, head, preset="demo", settings={}, **common)
    settings = {"density": 0.2, "rounds": 2, "batches": 2, "batch_size": 16}
    record = calibrate_to_file(choice, task, head, None, out, preset="paper", settings=settings, **common)
    masks = Masks.load(out)
    assert masks.count() == int(0.2 * masks.numel) and record["trained"] == f"{masks.count()} of {masks.numel}"
    saved = json.loads(masks.metadata["record"])
    assert saved["config"]["density"] == 0.2 and saved["task"] == task.name and saved["encoder"]["name"] == "tiny"
    with pytest.raises(CheckpointError, match="exists"):
        calibrate_to_file(choice, task, head, None, out, preset="paper", settings=settings, **common)
    again = {**common, "overwrite": True}
    calibrate_to_file(choice, task, head, None, out, preset="paper", settings=settings, **again)
    assert Masks.load(out) == masks
    with pytest.raises(TaskarithError, match="needs a task and its head"):
        calibrate_to_file(choice, None, None, None, out, preset="paper", settings={}, **again)
    calibrate_to_file(choice, None, None, None, out, preset="paper", settings={"method": "magnitude"}, **again)
    assert Masks.load(out).count() == int(0.1 * masks.numel)
