"""The bookkeeping that the sparse optimizers share; the arithmetic is in the operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from taskarith_fast.errors import ArgumentError, check_choice
from taskarith_fast.masks import Masks
from taskarith_fast.optim.entries import Batch, Entry, Precision, trained
from taskarith_fast.optim.gradients import gradient_of, has_compact, square_sums

_OWN = ("masks", "nonfinite", "_skipped", "_precision", "_entries", "_clip")


class SparseOptimizer(torch.optim.Optimizer):
    """A torch optimizer of the entries that `masks` selects; subclasses say how a batch of tensors is stepped.

    Frozen entries keep their bits. State exists for selected entries only, and for tensors with any.

    On a GPU nothing in a step waits for the device (unless `nonfinite` asks to look at the gradients), and states count
    their steps there: after a first step, which makes the states, steps may be captured in a CUDA graph.

    Attributes:
        masks: What is trained.
    """

    _step_supports_amp_scaling = True  # GradScaler sets `grad_scale` and `found_inf`

    def __init__(
        self,
        named_parameters: Iterable[Any],
        masks: Masks,
        defaults: dict[str, Any],
        precision: Precision,
        nonfinite: str,
    ) -> None:
        check_choice("nonfinite", nonfinite, ("propagate", "error", "skip"))
        if not masks.count():
            raise ArgumentError("masks must select at least one entry, got none")
        self.masks, self.nonfinite, self._skipped = masks, nonfinite, torch.tensor(0)
        self._precision = precision
        self._entries: dict[Tensor, Entry] = {}
        self._clip: Tensor | None = None
        self._stepped: set[Tensor] | None = None  # in this backward pass; None: step() does the work
        super().__init__(named_parameters, defaults)
        unused = sorted(masks.keys() - {entry.name for entry in self._entries.values()})
        if unused:
            raise ArgumentError(f"{unused[0]}: the mask fits no parameter; {len(unused)} such masks")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters as (name, parameter) pairs; those without a mask must be frozen and are left out.

        Raises:
            ArgumentError: If a parameter does not fit its mask or cannot be trained so.
        """
        kept = trained(param_group["params"], self.masks)
        super().add_param_group({**param_group, "params": kept})
        for name, parameter in kept:
            self._entries[parameter] = self._precision.entry(name, parameter, self.masks)
        self.param_groups[-1]["mask_digests"] = [self._entries[p].digest for _, p in kept]

    @property
    def skipped_steps(self) -> int:
        """Steps that non-finite gradients prevented."""
        return int(self._skipped)

    @property
    def state_bytes(self) -> int:
        """Bytes of the moments, master weights and indices that are held now."""
        states = sum(v.numel() * v.element_size() for s in self.state.values() for k, v in s.items() if k != "step")
        return states + sum(entry.selection.nbytes for entry in self._entries.values())

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; returns what `closure` returns.

        Raises:
            ArgumentError: If a gradient is of the wrong size, or not finite under ``nonfinite="error"``; or after
                ``step_in_backward``, if what was called cannot be had there.
        """
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if self._stepped is not None:
            self._end_of_backward(closure, found_inf)
            return None
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grads = self._gradients(self._entries, found_inf is not None)
        if found_inf is not None or self._all_finite(grads):
            self._advance(grads, (self._clip, grad_scale, found_inf))
        self._clip = None
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear ``grad`` and ``compact_grad`` of every parameter, and the clipping of this step."""
        super().zero_grad(set_to_none)
        self._clip = None
        for parameter in self._entries:
            if has_compact(parameter):
                parameter.compact_grad = None  # type: ignore[attr-defined]

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float, over: str = "selected") -> Tensor:
        """Let the next step scale all gradients so that their Euclidean norm is at most `max_norm`.

        The gradients themselves stay as they are; `step` and `zero_grad` end it.

        Args:
            max_norm: Positive.
            over: "selected" entries, or "all" entries of these parameters (the papers' code; needs dense gradients).

        Returns:
            The norm before clipping, float32, no dimension.

        Raises:
            ArgumentError: If an argument is out of its domain, or gradients are used up in the backward pass.
        """
        check_choice("over", over, ("selected", "all"))
        if not max_norm > 0:
            raise ArgumentError(f"max_norm must be positive, got {max_norm}")
        if self._stepped is not None:
            raise ArgumentError("clipping needs all gradients at once; step_in_backward has used them up")
        grads = self._gradients(self._entries)
        if over == "all" and any(has_compact(p) for p in grads):
            raise ArgumentError("over='all' needs dense gradients, got compact_grad; use over='selected'")
        norm = self._square_sums(grads, over).sum().sqrt()
        self._clip = (max_norm / (norm + 1e-6)).clamp(max=1.0).float()
        return norm.float()

    def step_in_backward(self) -> None:
        """From now on step each parameter as soon as its gradient is complete, and free the gradient at once.

        ``step()`` then ends the step and must follow each ``backward()``. Not to be had: clipping, GradScaler,
        accumulation, closures, ``nonfinite="skip"``.

        Raises:
            ArgumentError: If non-finite gradients are to be skipped.
        """
        if self.nonfinite == "skip":
            raise ArgumentError("nonfinite='skip' needs all gradients at once; step_in_backward steps one by one")
        if self._stepped is None:
            self._stepped = set()
            for parameter in self._entries:
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(self.step_parameter)

    @torch.no_grad()
    def step_parameter(self, parameter: Tensor) -> None:
        """Step one parameter whose gradient is complete, and free the gradient; after `step_in_backward` only.

        Dense gradients come here by themselves, compact ones by
        ``compact_gradients(model, masks, on_gradient=optimizer.step_parameter)``; those that do not are stepped, and
        freed, by `step`.

        Raises:
            ArgumentError: If the parameter had its step already, or its gradient is not finite under
                ``nonfinite="error"``.
        """
        if self._stepped is None:
            raise ArgumentError("step_parameter belongs to the backward pass; call step_in_backward() first")
        grads = self._gradients([parameter])
        if not grads:  # a compact gradient was used up before autograd's own hook came
            return
        if parameter in self._stepped:
            name = self._entries[parameter].name
            raise ArgumentError(
                f"{name} had its step: step_in_backward cannot accumulate; call step() after backward()"
            )
        self._stepped.add(parameter)
        if self._all_finite(grads):
            self._advance(grads)
        parameter.grad = None
        if has_compact(parameter):
            parameter.compact_grad = None  # type: ignore[attr-defined]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` gave, bit by bit.

        Raises:
            ArgumentError: If it is of another optimizer or another mask.
        """
        for ours, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            for p, digest in zip(ours["params"], saved.get("mask_digests") or [""] * len(ours["params"]), strict=False):
                if digest != self._entries[p].digest:
                    raise ArgumentError(f"{self._entries[p].name}: the optimizer state belongs to another mask")
        super().load_state_dict(state_dict)
        saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(saved_ids, parameters, strict=True):
            if p in self.state:
                self.state[p]["step"] = self.state[p]["step"].to(p.device)
            if p.dtype != torch.float32:  # torch has rounded the float32 state to the parameter's type
                saved = state_dict["state"].get(i, {})
                self.state[p].update({k: v.to(p.device, copy=True) for k, v in saved.items() if k != "step"})

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in _OWN}
        return {**super().__getstate__(), **own, "_stepped": None}  # a copy's parameters have no hooks

    def _moments(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Names of the compact float32 states of a group's parameters."""
        raise NotImplementedError

    def _update(self, group: dict[str, Any], batch: Batch, scalars: tuple[Tensor | None, ...]) -> None:
        """Step a batch; `scalars` are clip, grad_scale and found_inf on its device."""
        raise NotImplementedError

    def _gradients(self, parameters: Iterable[Tensor], scaled: bool = False) -> dict[Tensor, Tensor]:
        """The gradients, dense or compact, of those of `parameters` that have one."""
        found = {p: gradient_of(p, self._entries[p], scaled) for p in parameters}
        return {p: grad for p, grad in found.items() if grad is not None}

    def _square_sums(self, grads: dict[Tensor, Tensor], over: str) -> Tensor:
        return square_sums([(grad, self._entries[p].selection) for p, grad in grads.items()], over)

    def _all_finite(self, grads: dict[Tensor, Tensor]) -> bool:
        if self.nonfinite == "propagate":
            return True
        bad = (~self._square_sums(grads, "selected").isfinite()).nonzero()
        if len(bad) and self.nonfinite == "error":
            raise ArgumentError(f"the gradient of {self._entries[list(grads)[int(bad[0])]].name} is not finite")
        self._skipped += len(bad) > 0
        return not len(bad)

    def _advance(self, grads: dict[Tensor, Tensor], scalars: tuple[Tensor | None, ...] = (None, None, None)) -> None:
        """Step the parameters that have a gradient; `scalars` are clip, grad_scale and found_inf."""
        for group in self.param_groups:
            for batch in self._batches(group, grads):
                there = tuple(None if x is None else x.to(batch.params[0].device) for x in scalars)
                self._update(group, batch, there)
                increment_version(batch.params)
                found_inf = there[-1]
                steps = batch.state("step")
                if found_inf is None:
                    torch._foreach_add_(steps, 1)
                else:  # a list: with one tensor torch would read its value on the host
                    torch._foreach_add_(steps, [(found_inf == 0).float().squeeze()] * len(steps))
        found_inf = scalars[-1]
        if found_inf is not None:
            self._skipped = self._skipped.to(found_inf.device)
            self._skipped += (found_inf != 0).squeeze()

    def _batches(self, group: dict[str, Any], grads: dict[Tensor, Tensor]) -> Iterable[Batch]:
        """The parameters of `group` in batches of one device and kind of rounding."""
        batches: dict[tuple[Any, ...], Batch] = {}
        for p in group["params"]:
            entry = self._entries[p]
            if p in grads and entry.selection.count:
                state = self.state[p] or self._new_state(p, self._moments(group))
                key = (p.device, entry.master, entry.stream is None)
                batches.setdefault(key, Batch()).add(p, grads[p], state, entry)
        return batches.values()

    def _new_state(self, parameter: Tensor, moments: tuple[str, ...]) -> dict[str, Tensor]:
        """Zero moments [count], the master weights [count]; the steps so far are a tensor, as torch's fused ones."""
        state, entry = self.state[parameter], self._entries[parameter]
        state["step"] = torch.zeros((), device=parameter.device)
        for name in moments:
            state[name] = torch.zeros(entry.selection.count, device=parameter.device)
        if entry.master:
            state["master"] = parameter.detach().reshape(-1)[entry.selection.index()].float()
        return state

    def _end_of_backward(self, closure: Callable[[], Any] | None, found_inf: Tensor | None) -> None:
        if closure is not None:
            raise ArgumentError("step_in_backward steps before a closure could return; call step() without one")
        if found_inf is not None:
            raise ArgumentError("step_in_backward steps before GradScaler can check; use bfloat16 without a scaler")
        assert self._stepped is not None
        for parameter in self._entries:
            if has_compact(parameter):
                self.step_parameter(parameter)
        self._stepped.clear()
