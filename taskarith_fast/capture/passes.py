r"""See what per-sample gradients are made of, without forming the gradient of a single parameter.

Inside ``observe`` a model's parameters are frozen stand-ins, so that autograd computes input gradients only. Where a
layer uses a parameter, the identity is put behind its output; in the backward pass it hands the layer's input and the
gradient at its output to the observer, and the gradient on. Of the forward pass nothing is kept that an ordinary one
would not keep, and what activation checkpointing drops stays dropped.

The model must work batch first: every layer's input has the samples as its first dimension.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from taskarith_fast.capture.borrow import evaluated, recomputed_blocks, substituted
from taskarith_fast.capture.embeddings import Stage, find_stages
from taskarith_fast.capture.places import Places, tensors_in
from taskarith_fast.capture.relative import RelativeBias, find_relative_biases
from taskarith_fast.capture.told import Told, together, told
from taskarith_fast.capture.uses import RULES, Use, use_of_linear, values_of
from taskarith_fast.errors import ArgumentError
from taskarith_fast.inputs import Inputs, call, count
from taskarith_fast.models.fast import fast_linear
from taskarith_fast.ops.linear import Compute, around_linear


class Observer(Protocol):
    """What is told about each parameter, once a backward pass; gradients are those of every sample's own loss."""

    def dense(self, name: str, x: Tensor, grad_y: Tensor) -> None:
        """The gradient of a matrix [o, k] is sum_s grad_y[b, s, o] x[b, s, k]; x is [B, ..., k], grad_y [B, ..., o]."""

    def elementwise(self, name: str, grad_y: Tensor, x: Tensor | None) -> None:
        """The gradient of a tensor is sum_s grad_y[b, s] * x[b, s]; both are [B, ..., *shape], None is ones."""

    def looked_up(self, name: str, ids: Tensor, grad_y: Tensor) -> None:
        """Row v of a table's gradient is the sum of grad_y[b, s] over ids[b, s] = v; [B, ...] and [B, ..., d]."""


@contextmanager
def observe(
    model: nn.Module,
    observer: Observer,
    *,
    names: Iterable[str] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    checkpoint: bool = False,
    whole_batch: bool = False,
) -> Iterator[Capture]:
    """Observe a model's forward and backward passes inside a with block; after it the model is as it was.

    Args:
        model: Maps images [B, 3, H, W] or a batch of texts (``inputs``) to features or logits [B, C]; ours,
            open_clip's, timm's, transformers', or one made of dense layers, norms, tables, patch convolutions and
            elementwise factors. It runs in evaluation mode.
        observer: Is told about the parameters.
        names: Parameters to observe; None means all.
        tensors: Values for some parameters other than their own, by name.
        checkpoint: Compute the transformer blocks again in the backward pass, to keep less.
        whole_batch: Treat the batch as one sample with the tokens of all.

    Yields:
        The passes: ``forward``, then ``backward`` once or more.

    Raises:
        ArgumentError: If a name is not the model's.
    """
    own = dict(model.named_parameters())
    wanted = list(own if names is None else names)
    for name in wanted:
        if name not in own:
            raise ArgumentError(f"names: {name} is no parameter of the model; expected names as {next(iter(own), '')}")
    frozen = {name: (tensors or {}).get(name, parameter).detach() for name, parameter in own.items()}
    capture = Capture(model, observer, {name: frozen[name] for name in wanted}, whole_batch)
    with evaluated(model), fast_linear(model), substituted(model, frozen), capture._observing(checkpoint):
        yield capture


class Capture:
    """Forward and backward passes of one model under observation; ``observe`` makes it."""

    def __init__(self, model: nn.Module, observer: Observer, tensors: dict[str, Tensor], whole_batch: bool) -> None:
        self._model, self._observer, self._whole_batch = model, observer, whole_batch
        self._places = Places(tensors)
        self._shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self._stages = list(find_stages(model, lambda name: name in tensors))
        self._biases = list(find_relative_biases(model, lambda name: name in tensors))
        # Seen where they are added, not where they are looked up.
        self._elsewhere = {name for stage in self._stages for name in stage.names} | {b.name for b in self._biases}
        # What the observed outputs depend on, so that autograd has a reason to come by.
        self._root = torch.zeros((), requires_grad=True)
        self._batch = 0
        self._uses: Counter[str] = Counter()
        self._told: dict[str, list[Told]] = {}
        self._counting, self._paused = False, False

    def forward(self, images: Inputs) -> Any:
        """Run the model on images, shape [B, 3, H, W], or on texts.

        Raises:
            ArgumentError: If a layer does not have the batch first, or a parameter is used in a way that is not known.
        """
        self._batch = count(images)
        self._uses.clear()
        self._counting = True  # blocks that are computed again are not used again
        try:
            with torch.enable_grad(), _Functions(self):
                output = call(self._model, images)
        finally:
            self._counting = False
        missing = [name for name in self._places.names if name not in self._uses]
        if missing:
            raise ArgumentError(
                f"{missing[0]}: no rule gives its per-sample gradient, or the model does not use it "
                f"({len(missing)} such); leave it out of names"
            )
        return output

    def backward(self, output: Tensor, cotangent: Tensor, retain_graph: bool = False) -> None:
        """Tell the observer about the gradients of sum(output * cotangent); row b must depend on sample b only.

        Args:
            output: Computed from what ``forward`` returned, shape [B, C].
            cotangent: Shape of `output`.
            retain_graph: Whether another backward pass follows.

        Raises:
            ArgumentError: If a parameter is used several times in the pass, in ways that do not add up.
        """
        self._told.clear()
        torch.autograd.backward(output, cotangent, retain_graph=retain_graph, inputs=self._root)
        for name in list(self._told):
            self._pass_on(name, together(name, self._told.pop(name), self._shapes[name]))

    @contextmanager
    def _observing(self, checkpoint: bool) -> Iterator[None]:
        with ExitStack() as stack:
            for stage in self._stages:
                for handle in self._watch(stage):
                    stack.callback(handle.remove)
            for bias in self._biases:
                supply = functools.partial(self._supply, bias)
                stack.callback(bias.module.register_forward_pre_hook(supply, with_kwargs=True).remove)
            stack.enter_context(around_linear(self._around))
            if checkpoint:
                stack.enter_context(recomputed_blocks(self._model, lambda: _Functions(self)))
            yield

    def see(self, y: Tensor, use: Use | None) -> Tensor:
        """Put the identity behind an output of which a parameter is observed."""
        if use is None or self._paused or not torch.is_grad_enabled():
            return y
        self._refuse(use.x, "as an input")
        roles = []
        for tensor, role in use.roles:
            name = None if tensor is None else self._places.whole(tensor)
            if name is not None and name not in self._elsewhere:
                roles.append((name, role))
            elif name is None and tensor is not None:
                self._refuse(tensor, "in part")
        if not roles:
            return y
        if use.x.shape[:1] != (self._batch,):
            raise ArgumentError(
                f"{roles[0][0]}: its input must have the batch of {self._batch} first, got {list(use.x.shape)}; "
                "only models that work batch first can be observed"
            )
        self._count(name for name, _ in roles)
        return _Tap.apply(y, self._root, use.x.detach(), functools.partial(self._tell, roles, use))

    def refuse_unknown(self, func: Any, arguments: tuple[Any, ...], use: Use | None, y: Any) -> None:
        """Refuse a function that computes with a parameter as no rule says: what is told would be a part of the sum."""
        if self._paused or not torch.is_grad_enabled():
            return
        known = {self._places.owner(tensor) for tensor, _ in use.roles if tensor is not None} if use else set()
        for tensor in tensors_in(values_of(func, arguments)):
            name = self._places.owner(tensor)
            # A view is no use yet.
            if name not in known and any(self._places.owner(result) != name for result in tensors_in(y)):
                self._refuse(tensor, f"in {getattr(func, '__name__', func)}")

    def _refuse(self, tensor: Tensor, where: str) -> None:
        """Refuse a tensor that is, or is a piece of, an observed parameter."""
        name = self._places.owner(tensor)
        if name is not None and name not in self._elsewhere:
            raise ArgumentError(
                f"{name}: no rule gives its per-sample gradient where it is used {where}; leave it out of names"
            )

    def _tell(self, roles: list[tuple[str, str]], use: Use, x: Tensor, grad_y: Tensor) -> None:
        if use.prepare is not None:
            x, grad_y = use.prepare(x, grad_y)
        for name, role in roles:
            self._take(name, told(role, x, grad_y))

    def _take(self, name: str, use: Told) -> None:
        """Tell the observer of a parameter that is used once, and keep what is to be added up."""
        if self._whole_batch:
            use = together(name, [use], self._shapes[name]).whole()
        if self._uses[name] > 1:
            self._told.setdefault(name, []).append(use)
        else:
            self._pass_on(name, use)

    def _pass_on(self, name: str, use: Told) -> None:
        if use.role == "dense":
            self._observer.dense(name, use.x, use.grad_y)
        elif use.role == "looked up":
            self._observer.looked_up(name, use.x, use.grad_y)
        else:
            self._observer.elementwise(name, use.grad_y, use.x)

    def _count(self, names: Iterable[str]) -> None:
        if self._counting:
            self._uses.update(names)

    def _supply(self, bias: RelativeBias, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Give an attention layer its position bias, sample by sample, and see it."""
        if self._paused:
            return None
        self._paused = True
        try:
            found = bias.look_up(args, kwargs)
        finally:
            self._paused = False
        if found is None:
            return None
        ids, values = found
        self._count([bias.name])

        def tell(_: Any, grad: Tensor) -> None:
            grad_y = grad.flatten(2).transpose(1, 2)  # [B, L S, H]
            self._take(bias.name, told("looked up", ids.expand(len(grad), -1), grad_y))

        return args, kwargs | {"position_bias": _Tap.apply(values, self._root, None, tell)}

    def _around(self, compute: Compute, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # The layer is seen here; the functions it is made of would be seen a second time.
        with torch._C.DisableTorchFunction():
            return self.see(compute(x, weight, bias), use_of_linear(x, weight, bias))

    def _watch(self, stage: Stage) -> Iterator[Any]:
        """Note the images that enter a stage, and see the tokens that leave it."""
        seen: list[tuple[int, ...]] = []

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self._paused:
                images = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
                self._paused = True
                try:
                    seen[:] = [stage.trace(images)]
                finally:
                    self._paused = False

        def enter(module: nn.Module, args: tuple[Any, ...]) -> Any:
            return None if self._paused else (self._see_tokens(stage, seen[0], args[0]), *args[1:])

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if self._paused:
                return None
            if isinstance(output, tuple):
                return (self._see_tokens(stage, seen[0], output[0]), *output[1:])
            return self._see_tokens(stage, seen[0], output)

        yield stage.module.register_forward_pre_hook(note, with_kwargs=True)
        if stage.ends_in_output:
            yield stage.end.register_forward_hook(leave)
        else:
            yield stage.end.register_forward_pre_hook(enter)

    def _see_tokens(self, stage: Stage, key: tuple[int, ...], tokens: Tensor) -> Tensor:
        self._count(stage.names)
        return _Tap.apply(tokens, self._root, None, lambda _, grad: self._tell_embeddings(stage, key, grad))

    def _tell_embeddings(self, stage: Stage, key: tuple[int, ...], grad_tokens: Tensor) -> None:
        for grad in grad_tokens.sum(0, keepdim=True) if self._whole_batch else grad_tokens:
            for name, gradient in zip(stage.names, stage.gradients(key, grad), strict=True):
                self._observer.elementwise(name, gradient[None], None)


class _Functions(TorchFunctionMode):
    """Sees the torch functions that use parameters, in a model of any library."""

    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self._capture = capture

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        y = func(*args, **kwargs)
        rule: Callable[..., Use | None] | None = RULES.get(func)
        use = None if rule is None else rule(*args, **kwargs)
        self._capture.refuse_unknown(func, (*args, *kwargs.values()), use, y)
        return self._capture.see(y, use)


class _Tap(torch.autograd.Function):
    """The identity; in the backward pass `tell` is called with what was kept and the gradient."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, root: Tensor, kept: Tensor | None, tell: Any) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.tell = tell
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:  # type: ignore[override]
        ctx.tell(ctx.saved_tensors[0], grad_y)
        return grad_y, None, None, None
