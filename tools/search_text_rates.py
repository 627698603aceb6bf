"""Search the learning rates of the demo of texts: validation accuracy of each recipe on some tasks.

    python tools/search_text_rates.py qkvo talos --rates 1e-4 3e-4 1e-3 --tasks nouns uses

Everything but the rate is the demo's: encoder, probe, masks, passes, number of training texts. Validation takes up to
200 texts a task, where the demo has 80. Test texts are not read. A line is a recipe, a rate, and the accuracy by task.
"""

from __future__ import annotations

import argparse
import dataclasses

from taskarith_fast import data
from taskarith_fast.loops.calibrate import calibrate
from taskarith_fast.loops.demo import limit_tasks
from taskarith_fast.loops.demo_config import TEXT_PRESETS
from taskarith_fast.loops.evaluate import batches_of, evaluate, load_state
from taskarith_fast.loops.finetune import finetune
from taskarith_fast.loops.linearized import LinearizedEvaluator
from taskarith_fast.loops.probe import probe
from taskarith_fast.loops.recipes import RECIPES
from taskarith_fast.models import load_encoder

DEMO = dataclasses.replace(TEXT_PRESETS["default"], val=200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", choices=tuple(DEMO.recipes))
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    parser.add_argument("--tasks", nargs="+", default=["nouns", "uses"])
    options = parser.parse_args()
    encoder = load_encoder(DEMO.encoder)
    base = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    tasks = limit_tasks(data.load_text_tasks(options.tasks), DEMO)
    heads = {name: probe(encoder, task, DEMO.probe).head for name, task in tasks.items()}
    masks = {(r, n): _masks(r, encoder, heads[n], tasks[n]) for r in options.recipes for n in tasks}
    for recipe in options.recipes:
        for rate in options.rates:
            config = dataclasses.replace(DEMO.recipes[recipe], lr=rate, device="cpu")
            found = {}
            for name, task in tasks.items():
                result = finetune(encoder, heads[name], task, config, masks=masks[recipe, name])
                val = {name: task.splits["val"]}
                if RECIPES[recipe].linearized and result.tau is not None:
                    found[name] = LinearizedEvaluator(encoder, heads, val, [result.tau]).evaluate(name, [1.0]).accuracy
                else:
                    load_state(encoder, result.state)
                    found[name] = evaluate(encoder, heads[name], val[name]).accuracy
                    load_state(encoder, base)
            mean = sum(found.values()) / len(found)
            words = "  ".join(f"{name} {100 * accuracy:.1f}" for name, accuracy in found.items())
            print(f"{recipe:11s} {rate:7.0e}  mean {100 * mean:5.1f}  {words}", flush=True)


def _masks(recipe: str, encoder, head, task):  # type: ignore[no-untyped-def]
    """The masks of a sparse recipe, as the demo selects them; None for the others."""
    if RECIPES[recipe].kind != "masks":
        return None
    if recipe == "lota":
        full = finetune(encoder, head, task, dataclasses.replace(DEMO.recipes["full"], device="cpu"))
        return calibrate(encoder, density=DEMO.mask_density, method="lota", finetuned=full.state)
    batches = list(batches_of(encoder, task.splits["val"], batch_size=64, image_size=None))
    return calibrate(encoder, batches, density=DEMO.mask_density, method=recipe, rounds=DEMO.mask_rounds, head=head)


if __name__ == "__main__":
    main()
