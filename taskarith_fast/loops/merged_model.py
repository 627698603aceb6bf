"""A model whose weights are a merge: written in place for given coefficients, differentiated by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskarith_fast.errors import CheckpointError
from taskarith_fast.formats.tied import find_tied
from taskarith_fast.inputs import Inputs, call, moved
from taskarith_fast.loops.evaluate import load_state
from taskarith_fast.loops.runtime import device_of
from taskarith_fast.merging.coefficients import CoefficientMerge

State = Mapping[str, Tensor]


class MergedModel:
    """A module as the place where a merge is materialised and differentiated.

    Its parameters hold the merged weights, their `.grad` the gradient by them: beyond the models merged, that is all.

    Args:
        model: The module; its weights are overwritten.
        merge: The merge as a function of its coefficients, made of states from `resident`.
    """

    def __init__(self, model: nn.Module, merge: CoefficientMerge) -> None:
        self.model, self.merge = model, merge
        self._own = _distinct(model)
        self._learned = {n: t for n in merge.names if isinstance(t := self._own[n], nn.Parameter)}

    @contextmanager
    def adapting(self, heads: Mapping[str, nn.Module]) -> Iterator[None]:
        """Evaluation mode, and gradients for the merged weights alone, inside the block; the modules' own after it."""
        modules = [self.model, *heads.values()]
        modes = [module.training for module in modules]
        flags = [(p, p.requires_grad) for p in self.model.parameters()]
        try:
            for module in modules:
                module.eval()
            self.model.requires_grad_(False)
            for parameter in self._learned.values():
                parameter.requires_grad_(True)
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.train(mode)
            for parameter, flag in flags:
                parameter.requires_grad_(flag).grad = None

    def write(self, coefficients: Tensor) -> None:
        """Put the merge for `coefficients`, shape [T, L], into the model."""
        self.merge.write(coefficients, self._own)

    def gradient(
        self, heads: Mapping[str, nn.Module], batches: Mapping[str, Sequence[Inputs]]
    ) -> tuple[Tensor, Tensor]:
        """Differentiate the summed entropies of the tasks by the coefficients that were written last.

        One task's graph is alive at a time; the gradients by the merged weights add up over tasks and batches, and
        one pass over them gives those by the coefficients.

        Args:
            heads: Task name -> head, features to logits.
            batches: Task name -> batches, each images [B, 3, S, S] or texts as a dict.

        Returns:
            d sum_t sum_batches H / d coefficients, float64 [T, L], and each task's mean entropy over its batches, [T].
        """
        learned = list(self._learned.values())
        device = device_of(self.model)
        entropies = []
        for name, images in batches.items():
            total = torch.zeros((), device=device)
            for batch in images:
                loss = mean_entropy(heads[name](call(self.model, moved(batch, device))))
                loss.backward(inputs=learned)
                total += loss.detach()
            entropies.append(total / len(images))
        grads = {name: p.grad for name, p in self._learned.items() if p.grad is not None}
        gradient = self.merge.gradient(grads)
        for parameter in learned:
            parameter.grad = None
        return gradient, torch.stack(entropies)


def mean_entropy(logits: Tensor) -> Tensor:
    """Mean over the batch of the Shannon entropy of softmax(logits), in nats; logits [B, C]."""
    log = F.log_softmax(logits.float(), dim=-1)
    return -(log.exp() * log).sum(-1).mean()


def resident(model: nn.Module, states: Sequence[State]) -> list[dict[str, Tensor]]:
    """Take states over to where the model computes: its device and dtypes, and of tied tensors the first alone.

    The first state is loaded into the model; tensors that share memory with the model are copied before.

    Raises:
        CheckpointError: If its names or shapes are not the model's, or a state holds different tensors under names
            that the model ties.
    """
    own = _distinct(model)
    _check_tied(model, states)
    memory = {tensor.untyped_storage().data_ptr() for tensor in own.values()}
    apart = [{name: _apart(tensor.detach(), memory) for name, tensor in state.items()} for state in states]
    load_state(model, apart[0])
    return [{name: state[name].to(t.device, t.dtype) for name, t in own.items()} for state in apart]


def _check_tied(model: nn.Module, states: Sequence[State]) -> None:
    for name, first in find_tied(model.state_dict(keep_vars=True)).items():
        for i, state in enumerate(states):
            if name in state and first in state and not torch.equal(state[name], state[first]):
                label = f"finetuned[{i - 1}]" if i else "base"
                raise CheckpointError(f"{label}: {name} must equal {first}, to which the model ties it, but differs")


def _apart(tensor: Tensor, memory: set[int]) -> Tensor:
    return tensor.clone() if tensor.untyped_storage().data_ptr() in memory else tensor


def _distinct(model: nn.Module) -> dict[str, Tensor]:
    """The model's own tensors by name; a tensor of several names has its first."""
    first: dict[int, str] = {}
    own = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in own.items() if first.setdefault(id(tensor), name) == name}
