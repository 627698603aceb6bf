"""Encoders side by side, as Hazimeh et al. 2024 compare them: which they are, and protocols that run on each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch.overrides import TorchFunctionMode

from taskarith_fast.analysis.figures_lines import compared_figure
from taskarith_fast.analysis.figures_theme import in_both
from taskarith_fast.analysis.outcome import Check, Outcome, Table
from taskarith_fast.errors import BackendError
from taskarith_fast.loops.reproduce.bench import Bench, Protocol
from taskarith_fast.loops.reproduce.published import Published
from taskarith_fast.loops.reproduce.setting import Variant
from taskarith_fast.loops.reproduce.study import in_points
from taskarith_fast.models import load_encoder
from taskarith_fast.models.packages import digest

Benches = Mapping[str, Bench]
"""What an encoder is called -> where it runs."""
Curve = tuple[np.ndarray, np.ndarray]
RANDOM = "random weights"

PAPER = {
    "supervised IN1k, B/16": "timm:vit_base_patch16_224.augreg_in1k",
    "supervised IN21k, B/16": "timm:vit_base_patch16_224.augreg_in21k",
    "supervised IN21k, L/16": "timm:vit_large_patch16_224.augreg_in21k",
    "MAE, B/16": "timm:vit_base_patch16_224.mae",
    "MAE, L/16": "timm:vit_large_patch16_224.mae",
    "DINO, B/16": "timm:vit_base_patch16_224.dino",
    "CLIP LAION-400M, B/16": "open_clip:ViT-B-16/laion400m_e32",
    "CLIP LAION-400M, L/14": "open_clip:ViT-L-14/laion400m_e32",
    "CLIP LAION-2B, B/16": "open_clip:ViT-B-16/laion2b_s34b_b88k",
    "CLIP LAION-2B, L/14": "open_clip:ViT-L-14/laion2b_s32b_b82k",
}
"""The paper's pre-trainings and sizes, and what we take for each: its checkpoints' names are not in our text."""

AXES: dict[str, tuple[str, ...]] = {
    "all": tuple(PAPER),
    "pre-training": ("supervised IN21k, B/16", "MAE, B/16", "DINO, B/16", "CLIP LAION-2B, B/16"),
    "data": ("supervised IN1k, B/16", "supervised IN21k, B/16", "CLIP LAION-400M, B/16", "CLIP LAION-2B, B/16"),
    "size": ("supervised IN21k, B/16", "supervised IN21k, L/16", "CLIP LAION-2B, B/16", "CLIP LAION-2B, L/14"),
}
"""What is compared: keys of `PAPER`."""

_OWN, _SHALLOW = Variant("8 of 12 blocks"), Variant("4 of 12 blocks", depth=4)
_DRAWN = Variant(f"8 blocks, {RANDOM}", pretrained=False)
SHIPPED: dict[str, tuple[Variant, ...]] = {
    "all": (_OWN, _SHALLOW, _DRAWN), "pre-training": (_OWN, _DRAWN), "data": (_OWN, _DRAWN), "size": (_OWN, _SHALLOW),
}  # fmt: skip
"""What stands in for it: variants of the one backbone that ships. No pre-training stands for a worse one."""


def checkpoints(benches: Benches, published: Published) -> Outcome:
    """The paper's encoders, and those at hand; the sizes of encoders that are not are read off their architecture."""
    at_hand = {bench.setting.config.encoder: bench for bench in benches.values()}
    lines = [[label, name, *(_facts(at_hand[name]) if name in at_hand else [*_size(name), "not loaded here"])]
             for label, name in PAPER.items()]  # fmt: skip
    lines += [[label, bench.setting.config.encoder, *_facts(bench)]
              for label, bench in benches.items() if bench.setting.config.encoder not in PAPER.values()]  # fmt: skip
    columns = ["encoder", "loaded by", "parameters (million)", "features", "image side", "weights (SHA-256)"]
    note = (
        "The paper's list of checkpoints is not in the text that we have: its encoders are listed by pre-training and "
        "size, with what this package loads for each."
    )
    return Outcome([Table("Checkpoints", columns, lines, note)])


def side_by_side(benches: Benches, published: Published, *, protocol: Protocol, adds_up: bool = False) -> Outcome:
    """Run a protocol on every encoder; each table gets a column that names it.

    With `adds_up`, task addition is compared with and without pre-training too.
    """
    found = {label: protocol(bench, published) for label, bench in benches.items()}
    tables = [
        Table(first.title, ["encoder", *first.columns], rows, first.note)
        for t, first in enumerate(next(iter(found.values())).tables)
        for rows in [[[label, *row] for label, outcome in found.items() for row in outcome.tables[t].rows]]
    ]
    figures = {f"{label}: {text}": images for label, one in found.items() for text, images in one.figures.items()}
    return Outcome(tables, [*_checks(found), *(_pretrained_above(benches) if adds_up else [])], figures)


def overlaid(
    benches: Benches, published: Published, *, protocol: Protocol, curve: Callable[[Bench], Curve], label: str
) -> Outcome:
    """Run a protocol whose table is one curve on every encoder: a column each, and all curves in one figure.

    Args:
        benches, published: As for every protocol.
        protocol: It gives one table of two columns.
        curve: A bench's numbers: places, and normalised accuracies there.
        label: What the places are.
    """
    found = {name: protocol(bench, published) for name, bench in benches.items()}
    one = [outcome.tables[0] for outcome in found.values()]
    rows = [[lines[0][0], *(line[1] for line in lines)] for lines in zip(*(t.rows for t in one), strict=True)]
    table = Table(one[0].title, [one[0].columns[0], *found], rows, one[0].note)
    curves = {name: curve(bench) for name, bench in benches.items()}
    figure = in_both(lambda: compared_figure(curves, label))
    return Outcome([table], [*_checks(found), *_pretrained_above(benches)], {"Normalised accuracy": figure})


def _checks(found: Mapping[str, Outcome]) -> list[Check]:
    """What the paper says of each pre-trained encoder."""
    return [dataclasses.replace(check, statement=f"{label}: {check.statement}")
            for label, outcome in found.items() if RANDOM not in label for check in outcome.checks]  # fmt: skip


def _pretrained_above(benches: Benches) -> list[Check]:
    """Disentanglement as a consequence of pre-training, where an encoder without it is compared."""
    drawn = [label for label in benches if RANDOM in label]
    if not drawn:
        return []
    first, place = next(iter(benches)), ("full", "task_arithmetic")
    one, other = (benches[label].study("full") for label in (first, drawn[0]))
    words = f"task addition with {first} is above that with {drawn[0]} in normalised accuracy"
    return [in_points(words, one.above(place, place, "norm", other))]


def _facts(bench: Bench) -> list[str]:
    encoder = bench.setting.encoder
    weights = digest({name: tensor.cpu() for name, tensor in encoder.state_dict().items()})
    return [*_numbers(encoder), weights[:16]]


class _Undrawn(TorchFunctionMode):
    """Models made inside keep whatever their memory holds: drawing random weights takes nearly all the time."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in ("normal_", "uniform_", "trunc_normal_", "erfinv_", "clamp_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def _size(name: str) -> list[str]:
    """Of an encoder whose weights are not here, by its architecture."""
    try:
        with _Undrawn():
            return _numbers(load_encoder(name, pretrained=False))
    except BackendError:
        return ["", "", ""]


def _numbers(encoder: Any) -> list[str]:
    count = sum(parameter.numel() for parameter in encoder.parameters())
    return [f"{count / 1e6:.1f}", str(encoder.feature_dim), str(encoder.image_size)]
