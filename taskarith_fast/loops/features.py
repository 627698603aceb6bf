"""Features of a frozen encoder, computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from taskarith_fast import data, inputs
from taskarith_fast.loops.evaluate import BATCH_SIZE, batches_of, evaluating
from taskarith_fast.loops.runtime import device_of
from taskarith_fast.progress import SILENT, Progress


def extract_features(
    encoder: nn.Module,
    split: data.Split,
    *,
    batch_size: int = BATCH_SIZE,
    image_size: int | None = None,
    progress: Progress = SILENT,
) -> tuple[Tensor, Tensor]:
    """Encode every image of a split, without gradients.

    Args:
        encoder: Maps images [B, 3, S, S], or texts, to features [B, D]; it stays on its device, in its mode.
        split: Images and labels.
        batch_size: Images a forward pass.
        image_size: Side of the images in pixels; None takes the encoder's.
        progress: Shows a bar.

    Returns:
        Features float32 [N, D] and labels int64 [N], in the split's order, on the encoder's device.
    """
    features, labels = [], []
    with evaluating(encoder), progress.stage("features", len(split)) as stage:
        for images, batch_labels in batches_of(
            encoder, split, batch_size=batch_size, image_size=image_size, device=device_of(encoder)
        ):
            features.append(inputs.call(encoder, images).float())
            labels.append(batch_labels)
            stage.advance(len(batch_labels))
    # Outside of inference mode the results are ordinary tensors, which a probe can differentiate through.
    return torch.cat(features), torch.cat(labels)


class FeatureCache:
    """The features of one frozen encoder, by split; each split is encoded when first asked for.

    Args:
        encoder: Must not change while the cache is used.
        batch_size, image_size: As for `extract_features`.
    """

    def __init__(self, encoder: nn.Module, *, batch_size: int = BATCH_SIZE, image_size: int | None = None) -> None:
        self.encoder = encoder
        self._options: dict[str, Any] = {"batch_size": batch_size, "image_size": image_size}
        # The split is kept beside its features, so that its id cannot pass to another object.
        self._kept: dict[int, tuple[data.Split, Tensor, Tensor]] = {}

    def get(self, split: data.Split, progress: Progress = SILENT) -> tuple[Tensor, Tensor]:
        """Features [N, D] and labels [N] of the split, as `extract_features` gives them."""
        if id(split) not in self._kept:
            self._kept[id(split)] = (
                split,
                *extract_features(self.encoder, split, progress=progress, **self._options),
            )
        return self._kept[id(split)][1:]
