"""Image encoders, their heads, and the names of their parameters."""

from taskarith_fast.models.backbone import fetch_backbone, load_backbone
from taskarith_fast.models.encoders import load_encoder
from taskarith_fast.models.vit import VisionTransformer, VitConfig

__all__ = ["VisionTransformer", "VitConfig", "fetch_backbone", "load_backbone", "load_encoder"]
