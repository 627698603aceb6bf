"""Tensor shapes of the models that cases are named after."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor


def generator(seed: int) -> torch.Generator:
    """A seeded generator of the device that is being measured, torch's default device."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def vit_b32_shapes() -> list[tuple[int, ...]]:
    """The 152 tensors of open_clip's ViT-B/32 image tower: 87,849,216 weights."""
    return _tower(width=768, layers=12, patch=32, tokens=50, features=512)


def vit_l14_shapes() -> list[tuple[int, ...]]:
    """The 296 tensors of open_clip's ViT-L/14 image tower: 303,966,208 weights."""
    return _tower(width=1024, layers=24, patch=14, tokens=257, features=768)


def vit_s32_shapes() -> list[tuple[int, ...]]:
    """A tower of half ViT-B/32's width: 22,592,640 weights."""
    return _tower(width=384, layers=12, patch=32, tokens=50, features=256)


def vit_ti32_shapes() -> list[tuple[int, ...]]:
    """A quarter of its width, four blocks: 2,404,416 weights."""
    return _tower(width=192, layers=4, patch=32, tokens=50, features=128)


def tower_names(count: int) -> list[str]:
    """open_clip's names of the `count` tensors of a tower, in the order of its shapes."""
    layer = ("ln_1.weight", "ln_1.bias", "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight",
             "attn.out_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
             "mlp.c_proj.weight", "mlp.c_proj.bias")  # fmt: skip
    ends = ["class_embedding", "positional_embedding", "proj", "conv1.weight", "ln_pre.weight", "ln_pre.bias",
            "ln_post.weight", "ln_post.bias"]  # fmt: skip
    blocks = (count - len(ends)) // len(layer)
    return ends + [f"transformer.resblocks.{i}.{name}" for i in range(blocks) for name in layer]


def t5_shapes(*, width: int, hidden: int, heads: int, layers: int, words: int) -> dict[str, tuple[int, ...]]:
    """T5 1.0 by the names of Hugging Face's files, in which the tied embedding stands once; heads are 64 wide."""
    inner = 64 * heads
    found: dict[str, tuple[int, ...]] = {"shared.weight": (words, width)}
    for stack, attentions in (("encoder", ("SelfAttention",)), ("decoder", ("SelfAttention", "EncDecAttention"))):
        for block in range(layers):
            place = f"{stack}.block.{block}.layer"
            for i, attention in enumerate(attentions):
                found |= {f"{place}.{i}.{attention}.{name}.weight": (inner, width) for name in "qkv"}
                found[f"{place}.{i}.{attention}.o.weight"] = (width, inner)
                if block == i == 0:
                    found[f"{place}.{i}.{attention}.relative_attention_bias.weight"] = (32, heads)
                found[f"{place}.{i}.layer_norm.weight"] = (width,)
            last = f"{place}.{len(attentions)}"
            found[f"{last}.DenseReluDense.wi.weight"] = (hidden, width)
            found[f"{last}.DenseReluDense.wo.weight"] = (width, hidden)
            found[f"{last}.layer_norm.weight"] = (width,)
        found[f"{stack}.final_layer_norm.weight"] = (width,)
    return found


def _named(layers: list[tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return dict(zip(tower_names(len(layers)), layers, strict=True))


MODELS: dict[str, Callable[[], dict[str, tuple[int, ...]]]] = {
    "vit_ti32": lambda: _named(vit_ti32_shapes()),
    "vit_s32": lambda: _named(vit_s32_shapes()),
    "vit_b32": lambda: _named(vit_b32_shapes()),
    "vit_l14": lambda: _named(vit_l14_shapes()),
    "t5_tiny": lambda: t5_shapes(width=64, hidden=256, heads=1, layers=2, words=512),
    "t5_large": lambda: t5_shapes(width=1024, hidden=4096, heads=16, layers=24, words=32128),
}
"""Name -> the tensors of a model by their names in its library's files; T5-Large has 737,668,096 weights."""


def _tower(*, width: int, layers: int, patch: int, tokens: int, features: int) -> list[tuple[int, ...]]:
    block = [
        (width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,),
        (width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,),
    ]  # fmt: skip
    ends = [
        (width,), (tokens, width), (width, features), (width, 3, patch, patch), (width,), (width,), (width,), (width,),
    ]  # fmt: skip
    return ends + block * layers


def vit_b32_matrices(layers: int) -> list[tuple[int, int]]:
    """The four matrices that CART decomposes, for `layers` blocks of ViT-B/32."""
    return [(2304, 768), (768, 768), (3072, 768), (768, 3072)] * layers


def models(shapes: list[tuple[int, ...]], tasks: int, seed: int = 0) -> tuple[list[Tensor], list[list[Tensor]]]:
    """A base and `tasks` fine-tuned models: weights N(0, 0.02), deltas N(0, 1e-3), float32."""
    flat = flat_models(shapes, tasks, seed)
    base, *finetuned = (split(x, shapes) for x in flat)
    return base, finetuned


def flat_models(shapes: list[tuple[int, ...]], tasks: int, seed: int = 0) -> list[Tensor]:
    """The base and the fine-tuned models of `models`, each as one flat tensor."""
    random = generator(seed)
    size = sum(math.prod(s) for s in shapes)
    base = torch.randn(size, generator=random).mul_(0.02)
    return [base, *(torch.randn(size, generator=random).mul_(1e-3).add_(base) for _ in range(tasks))]


def split(flat: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Views of `flat`, one a shape."""
    parts = flat.split([math.prod(s) for s in shapes])
    return [part.view(s) for part, s in zip(parts, shapes, strict=True)]


def write_models(folder: str, model: str, tasks: str, distinct: str = "") -> None:
    """Write a base, m0.safetensors, and `tasks` fine-tuned models, m1 ..., one at a time, for jobs from files.

    With `distinct` only so many are written; the others are hard links to them, in turn.
    """
    from safetensors.torch import save_file

    layers, count = MODELS[model](), min(int(distinct or tasks), int(tasks))
    size = sum(math.prod(s) for s in layers.values())
    needed, free = 4 * size * (count + 3), shutil.disk_usage(folder).free  # two outputs besides the models
    if free < needed:
        raise SystemExit(f"{folder} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free; set TMPDIR to another disk")
    paths, random = [Path(folder) / f"m{t}.safetensors" for t in range(int(tasks) + 1)], generator(0)
    base = {name: torch.randn(shape, generator=random).mul_(0.02) for name, shape in layers.items()}
    save_file(base, paths[0])
    for path in paths[1 : count + 1]:
        tuned = {n: torch.randn(x.shape, generator=random).mul_(1e-3).add_(x) for n, x in base.items()}
        save_file(tuned, path)
    for place, path in enumerate(paths[count + 1 :]):
        path.hardlink_to(paths[1 + place % count])


def print_difference(base: str, ours: str, folder: str) -> None:
    """Print the share of weights by which a peer's output files in `folder` differ from ours, nan if one is missing.

    Two merged deltas differ if they are further apart than 1e-5 of the largest delta.
    """
    from safetensors import safe_open

    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in sorted(Path(folder).rglob("*.safetensors"))]
        start, here = (stack.enter_context(safe_open(path, "pt")) for path in (base, ours))
        there = {name: file for file in files for name in list(file.keys())}
        names = list(start.keys())
        if set(names) - there.keys():
            print("nan")
            return
        largest = max(float((here.get_tensor(n) - start.get_tensor(n)).abs().max()) for n in names)
        apart = total = 0
        for name in names:  # one at a time: models may be large
            difference = (there[name].get_tensor(name) - here.get_tensor(name)).abs()
            apart, total = apart + int((difference > 1e-5 * largest).sum()), total + difference.numel()
        print(apart / total)
