"""Peak memory of fine-tuning T5-Large: sparse steps in the backward pass against AdamW on all weights.

    python -m benchmarks.language_memory                       # about 13 GB for AdamW; contenders one after the other
    python -m benchmarks.language_memory --model t5-small --only query_key random
    python -m benchmarks.language_memory --plan                # what the planner says, without a step

Weights are random float32, the batch is one text of 128 tokens with 4 answers of 4. Each contender is two steps of
`loops.finetune.finetune` in a process of its own. Printed are megabytes above what the process holds before the model
is built: weights; state, which is masks, their indices and the optimizer's moments; activations, what a forward pass
keeps (counted, since freed memory is taken again); the peak beside what the planner expects; and `fixed`, the peak
without activations over the weights' bytes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

from benchmarks.clock import peak_resident, resident

DENSITY = 0.1
CONTENDERS = ("query_key", "random", "full")
BARS = {"query_key": 1.35, "random": 1.35}  # of the weights' bytes, activations on top
_TOKENS, _CHOICES, _ANSWER = 128, 4, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="t5-large", help="a shape that t5:google-t5/ or t5:google/ has")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--plan", action="store_true", help="plan alone")
    parser.add_argument("--here", action="store_true", help="in this process")
    options = parser.parse_args()
    for name in options.only:
        if options.here:
            measure(name, options.model, plan_only=options.plan)
            continue
        words = ["--here", "--only", name, "--model", options.model, *(["--plan"] if options.plan else [])]
        subprocess.check_call([sys.executable, "-m", "benchmarks.language_memory", *words])


def measure(name: str, model_name: str, *, plan_only: bool = False) -> None:
    """Print the memory of one contender, and what was planned."""
    import torch

    from taskarith_fast.loops.finetune import finetune
    from taskarith_fast.loops.memory_plan import plan_finetune
    from taskarith_fast.loops.runtime import return_freed_memory
    from taskarith_fast.models import load_language_model

    torch.manual_seed(0)
    return_freed_memory()
    _run(load_language_model("t5:t5", pretrained=False, depth=1), "random", finetune)  # what torch loads once
    before = resident()
    family = "google" if model_name.startswith("t5-v1_1") else "google-t5"
    model = load_language_model(f"t5:{family}/{model_name}", pretrained=False)
    weights = resident() - before
    marks: list[int] = []
    masks, config = settings(name, model)
    model.tokenizer = NoiseTokenizer(model.vocab_size)
    sample = model.tokenizer(range(1))
    plan = plan_finetune(model, None, config, masks, sample=sample, in_place=True)
    count = sum(p.numel() for p in model.parameters())
    print(f"{name:10s} {model_name}, {count / 1e6:.1f} M weights: planned peak {plan.peak / 1e6:8.0f} MB", end="")
    if plan_only:
        print(flush=True)
        return
    model.register_forward_pre_hook(lambda *_: marks.append(resident()))
    finetune(model, None, task(), config, masks=masks, in_place=True)
    peak = peak_resident() - before
    state, activations = marks[1] - before - weights, plan.activations  # at the start of the second step
    fixed = (peak - activations) / (4 * count)
    bar = f"{'within' if fixed <= BARS[name] else 'OVER'} {BARS[name]}" if name in BARS else ""
    print(
        f", measured {peak / 1e6:8.0f} MB ({plan.peak / peak - 1:+.1%})\n{'':10s} weights {weights / 1e6:.0f}, "
        f"state {state / 1e6:.0f}, activations {activations / 1e6:.0f}, "
        f"rest {(peak - weights - state - activations) / 1e6:.0f} MB; fixed {fixed:.3f}x weights {bar}",
        flush=True,
    )


def settings(name: str, model: Any) -> tuple[Any, Any]:
    """Masks and configuration of a contender: TaLoS's for T5 clip nothing and do not decay."""
    from taskarith_fast.loops.config import FinetuneConfig

    common = {"steps": 2, "batch_size": 1, "warmup": 0, "clip": None, "weight_decay": 0.0, "device": "cpu"}
    if name == "full":
        return None, FinetuneConfig(recipe="full", **common)
    return make_masks(model, name), FinetuneConfig(recipe="masked", step_in_backward=True, **common)


def make_masks(model: Any, kind: str) -> Any:
    """A tenth of the maskable weights: any of them, or whole rows of queries and keys, where TaLoS's mostly lie."""
    import torch

    from benchmarks import shapes
    from taskarith_fast.masks import Masks
    from taskarith_fast.models.maskable import maskable_names

    generator = shapes.generator(0)
    sizes = {n: model.get_parameter(n).shape for n in maskable_names(n for n, _ in model.named_parameters())}
    chosen = sizes if kind == "random" else {n: s for n, s in sizes.items() if n.endswith((".q.weight", ".k.weight"))}
    density = DENSITY * sum(s.numel() for s in sizes.values()) / sum(s.numel() for s in chosen.values())
    parts = []
    for name, size in sizes.items():  # one at a time: bits take an eighth of what bool does
        mask = torch.zeros(size, dtype=torch.bool)
        if name in chosen and kind == "random":
            mask = torch.rand(size, generator=generator) < density
        elif name in chosen:
            mask[torch.rand(size[0], generator=generator) < density] = True
        parts.append(Masks.pack({name: mask}))
    return Masks.join(parts)


class NoiseTokenizer:
    """Stands for a tokenizer: random ids, 128 a text."""

    max_length = None

    def __init__(self, vocabulary: int, *, answers: bool = True) -> None:
        self._vocabulary, self.answers = vocabulary, answers

    def __call__(self, examples: Any) -> dict[str, Any]:
        import torch

        ids = torch.randint(2, self._vocabulary, (len(examples), _TOKENS))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        answers = torch.randint(2, self._vocabulary, (len(examples), _CHOICES, _ANSWER))
        return batch | ({"answers": answers} if self.answers else {})

    def check(self, examples: Any) -> int:
        return 0


def task() -> Any:
    """Two texts, of which the tokenizer reads nothing."""
    from taskarith_fast.data import Example, Task, TextSplit

    split = TextSplit([Example("noise", ("a", "b", "c", "d"))] * 2, [0, 1])
    return Task("noise", tuple("abcd"), dict.fromkeys(("train", "val", "test"), split))


def _run(model: Any, name: str, finetune: Any) -> None:
    masks, config = settings(name, model)
    model.tokenizer = NoiseTokenizer(model.vocab_size)
    finetune(model, None, task(), config, masks=masks, in_place=True)


if __name__ == "__main__":
    main()
