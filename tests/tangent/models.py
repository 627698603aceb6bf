"""Small vision transformers of every library, with the structure of the real ones."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor, nn

SIZE = 32


def encoder(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A random model of one of NAMES, in evaluation mode, biases and gains not at their simple start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _BUILD[name]()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def images(count: int = 2, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Random images [count, 3, SIZE, SIZE]."""
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def features(out) -> Tensor:
    """The tensor that a model of any library returns."""
    if isinstance(out, Tensor):
        return out
    return out["image_embeds"] if "image_embeds" in out else out["last_hidden_state"]


def _own():
    from taskarith_fast.models import VisionTransformer, VitConfig

    return VisionTransformer(VitConfig(image_size=SIZE, patch_size=8, position_grid=3, width=24, depth=2, heads=3))


def _open_clip(**options):
    from open_clip.transformer import VisionTransformer

    shape = {"image_size": SIZE, "patch_size": 16, "width": 32, "layers": 2, "heads": 2, "mlp_ratio": 2.0}
    return VisionTransformer(**shape, output_dim=8, **options)


def _open_clip_quick():
    from open_clip.transformer import QuickGELU

    return _open_clip(act_layer=QuickGELU, ls_init_value=0.5)


def _timm(**options):
    from timm.models.vision_transformer import VisionTransformer

    shape = {"img_size": SIZE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}
    return VisionTransformer(**shape, **options)


def _hugging_face(model: str, config: str, **options):
    transformers = importlib.import_module("transformers")
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    return getattr(transformers, model)(
        getattr(transformers, config)(**shape, image_size=SIZE, patch_size=8, **options)
    )


_BUILD = {
    "ours": _own,
    "open_clip": _open_clip,
    "open_clip, quick gelu, layer scale": _open_clip_quick,
    "open_clip, attentional pool": lambda: _open_clip(
        attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2
    ),
    "timm": _timm,
    "timm, layer scale, registers, swish": lambda: _timm(init_values=0.5, reg_tokens=2, act_layer="silu"),
    "ViTModel": lambda: _hugging_face("ViTModel", "ViTConfig"),
    "Dinov2Model": lambda: _hugging_face("Dinov2Model", "Dinov2Config"),
    "Dinov2Model, gated": lambda: _hugging_face("Dinov2Model", "Dinov2Config", use_swiglu_ffn=True),
    "CLIPVisionModelWithProjection": lambda: _hugging_face("CLIPVisionModelWithProjection", "CLIPVisionConfig"),
}
NAMES = tuple(_BUILD)
