"""Small random models of the libraries, every tensor moved off its initial value to show mix-ups."""

from __future__ import annotations

import torch
from torch import nn

SIZE, PATCH, WIDTH, HEADS, DEPTH, HIDDEN = 28, 14, 24, 3, 2, 48
HF = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "image_size": SIZE,
    "patch_size": PATCH,
}


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in evaluation mode, noise added to every parameter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def images(seed: int = 1) -> torch.Tensor:
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def open_clip_model(seed: int = 0, quick_gelu: bool = True):
    import open_clip

    vision = {
        "image_size": SIZE,
        "layers": DEPTH,
        "width": WIDTH,
        "head_width": WIDTH // HEADS,
        "patch_size": PATCH,
        "mlp_ratio": HIDDEN / WIDTH,
    }
    text = {"context_length": 7, "vocab_size": 11, "width": 16, "heads": 2, "layers": 2}
    return shaken(open_clip.CLIP(8, vision, text, quick_gelu=quick_gelu), seed)


def hf_clip(seed: int = 0):
    import transformers

    config = transformers.CLIPVisionConfig(projection_dim=8, hidden_act="quick_gelu", **HF)
    return shaken(transformers.CLIPVisionModelWithProjection(config), seed)


def hf_clip_whole(seed: int = 0):
    import transformers

    text = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text |= {"vocab_size": 11, "max_position_embeddings": 7, "eos_token_id": 10, "projection_dim": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config={**HF, "projection_dim": 8}, projection_dim=8)
    return shaken(transformers.CLIPModel(config), seed)


def hf_vit(seed: int = 0, pooler: bool = False):
    import transformers

    return shaken(transformers.ViTModel(_vit_config(), add_pooling_layer=pooler), seed)


def hf_vit_classifier(seed: int = 0):
    import transformers

    config = _vit_config()
    config.num_labels = 5
    return shaken(transformers.ViTForImageClassification(config), seed)


def _vit_config():
    import transformers

    return transformers.ViTConfig(layer_norm_eps=1e-6, **HF)


def hf_dinov2(seed: int = 0, gated: bool = False):
    import transformers

    config = transformers.Dinov2Config(mlp_ratio=2, use_swiglu_ffn=gated, **HF)
    return shaken(transformers.Dinov2Model(config), seed)


def timm_vit(seed: int = 0, classes: int = 0, **options):
    from timm.models.vision_transformer import VisionTransformer

    shape = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    return shaken(VisionTransformer(**shape, mlp_ratio=HIDDEN / WIDTH, num_classes=classes, **options), seed)


def timm_dinov2(seed: int = 0):
    return timm_vit(seed, init_values=1.0)


def timm_clip(seed: int = 0):
    """Without a projection: timm's own head has a bias, so it is set to zero where it stands for one."""
    from timm.layers import QuickGELU

    model = timm_vit(seed, classes=8, pre_norm=True, act_layer=QuickGELU, norm_layer=_norm)
    model.head.bias.data.zero_()
    return model


def _norm(width: int, **options) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-5, **options)


def ours(seed: int = 0):
    from taskarith_fast.models import VisionTransformer, VitConfig

    side, ratio = SIZE // PATCH, HIDDEN / WIDTH
    shape = {
        "image_size": SIZE,
        "patch_size": PATCH,
        "position_grid": side,
        "width": WIDTH,
        "mlp_ratio": ratio,
    }
    config = VitConfig(**shape, depth=DEPTH, heads=HEADS, pooling="cls")
    return shaken(VisionTransformer(config), seed)
