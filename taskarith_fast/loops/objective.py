"""What a fine-tuning run minimises, as one module, so that it can be wrapped as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskarith_fast import inputs
from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.runtime import autocast
from taskarith_fast.models.lora import LowRankAdapter


class Objective(nn.Module):
    """Mean over the tasks of the cross entropy of each task's images.

    Args:
        encoder: Maps images [B, 3, S, S] to features [B, D].
        heads: One for each task, from features to logits.
        adapter: Factors trained in place of the encoder's weights, if any.
        config: Gives the label smoothing and the precision.
    """

    def __init__(
        self, encoder: nn.Module, heads: Sequence[nn.Module], adapter: LowRankAdapter | None, config: FinetuneConfig
    ) -> None:
        super().__init__()
        self.encoder, self.heads, self.adapter = encoder, nn.ModuleList(heads), adapter
        self._smoothing, self._precision = config.label_smoothing, config.precision
        self._likelihood = config.loss == "likelihood"
        if self._likelihood and hasattr(encoder, "feature_dim"):
            raise ArgumentError("loss 'likelihood' is for models that score answers; an encoder takes 'cross_entropy'")

    def forward(self, batches: Sequence[tuple[inputs.Inputs, Tensor, float]]) -> Tensor:
        """Return the loss of one batch a task, each with its images or texts, labels [b] and weight."""
        images, labels, weights = zip(*batches, strict=True)
        with autocast(labels[0].device, self._precision):
            features = inputs.call(self.encoder, inputs.joined(images)).split([len(part) for part in labels])
            losses = [
                self._loss(head(x).float(), y) * weight
                for head, x, y, weight in zip(self.heads, features, labels, weights, strict=True)
            ]
        return torch.stack(losses).mean()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self._likelihood:
            return -logits.gather(1, labels[:, None]).mean()
        return F.cross_entropy(logits, labels, label_smoothing=self._smoothing)
