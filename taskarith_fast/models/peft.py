"""Low-rank updates as an adapter of the PEFT library: a directory with its configuration and its tensors.

PEFT scales an update by lora_alpha / r, and wraps a model so that its names start with ``base_model.model.``:

    base_model.model.layers.0.attention.q_proj.lora_A.weight   [r, k]
    base_model.model.layers.0.attention.q_proj.lora_B.weight   [d, r]

Names are those of the transformers release that trained the adapter.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from taskarith_fast.checkpoint.commit import staged
from taskarith_fast.errors import ArgumentError, CheckpointError
from taskarith_fast.models.lora import LowRankAdapter, Target


def check_peft_targets(targets: tuple[Target, ...]) -> None:
    """Refuse updates that PEFT has no form for.

    Raises:
        ArgumentError: If a weight holds query, key and value together.
    """
    fused = [target.name for target in targets if target.fused]
    if fused:
        raise ArgumentError(
            f"{fused[0]}: a PEFT adapter needs separate query and value layers, got a fused weight; "
            f"take an encoder of transformers (hf:...), or the merged weights of the output"
        )


def save_peft_adapter(
    adapter: LowRankAdapter, path: str | os.PathLike[str], base_model: str, *, overwrite: bool = False
) -> Path:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, as `peft.PeftModel.from_pretrained` reads them.

    Args:
        adapter: Trained factors.
        path: The directory to make, atomically.
        base_model: Repository or folder of the model that was adapted.
        overwrite: Replace an existing directory.

    Raises:
        ArgumentError: As `check_peft_targets`.
        CheckpointError: If the directory exists and `overwrite` is off, or it cannot be written.
    """
    check_peft_targets(adapter.targets)
    path = Path(path)
    check_peft_destination(path, overwrite)
    with staged(path, directory=True) as folder:
        config = json.dumps(peft_config(adapter, base_model), indent=2)
        (folder / "adapter_config.json").write_text(config + "\n", encoding="utf-8")
        save_file(peft_tensors(adapter), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return path


def check_peft_destination(path: Path, overwrite: bool) -> None:
    """Refuse a directory that exists while `overwrite` is off."""
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path}: exists already; pass overwrite (--overwrite) to replace it")


def peft_config(adapter: LowRankAdapter, base_model: str) -> dict[str, Any]:
    """The configuration of the adapter, as PEFT's LoraConfig has it."""
    alpha = adapter.scale * adapter.rank
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model,
        "r": adapter.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "target_modules": [_module(target) for target in adapter.targets],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def peft_tensors(adapter: LowRankAdapter) -> dict[str, Tensor]:
    """The factors by the names that PEFT gives them."""
    tensors = {}
    for target, a, b in zip(adapter.targets, adapter.a, adapter.b, strict=True):
        stem = f"base_model.model.{_module(target)}"
        tensors[f"{stem}.lora_A.weight"] = a.detach().cpu().contiguous()
        tensors[f"{stem}.lora_B.weight"] = b.detach().cpu().contiguous()
    return tensors


def _module(target: Target) -> str:
    return target.name.removesuffix(".weight")
