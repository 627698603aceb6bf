"""``taskarith <verb>``: parsing and printing, nothing else. Heavy imports happen inside the verbs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Edit vision transformers by arithmetic on their weights: fine-tune, merge, evaluate.",
    epilog="Start with: taskarith demo --quick",
)

Threads = Annotated[int, typer.Option(help="CPU threads; 0 takes torch's default.")]
Device = Annotated[str, typer.Option(help="auto (cuda where there is one), cpu, cuda, cuda:1 ...")]


def main() -> None:
    """Run the command line; a user's mistake costs one line on stderr and exit code 2."""
    from taskarith_fast.errors import TaskarithError

    try:
        app()
    except TaskarithError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where results, figures and report.html go; finished stages are reused.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A small version in two minutes.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="More seeds and rows; up to 45 minutes on two cores.")] = False,
    seeds: Annotated[int, typer.Option(help="Seeds to average over; 0 takes the default of the chosen size.", min=0)] = 0,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:  # fmt: skip
    """Probe, fine-tune, merge and evaluate real tasks; write a report with a table and figures."""
    from taskarith_fast.loops.demo import run_demo

    report = run_demo(out, quick=quick, everything=everything, seeds=seeds, device=device, threads=threads)
    print(f"report: {report}")


@app.command()
def merge(
    base: Annotated[Path, typer.Argument(help="The pre-trained checkpoint.", show_default=False)] = Path(),
    finetuned: Annotated[list[Path] | None, typer.Argument(help="One or more fine-tuned checkpoints.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Destination, .safetensors.")] = None,
    method: Annotated[str, typer.Option("--method", "-m", help="A name that --list shows.")] = "task_arithmetic",
    parameter: Annotated[list[str] | None, typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="A parameter of the method, as often as needed: -p density=0.2 -p scale=1.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    show: Annotated[bool, typer.Option("--list", help="Show the methods, their parameters and papers, and stop.")] = False,
) -> None:  # fmt: skip
    """Merge checkpoint files: taskarith merge base.safetensors a.safetensors b.safetensors -o out.safetensors -m ties."""
    from taskarith_fast.errors import ArgumentError
    from taskarith_fast.merge import merge_files

    if show:
        _print_methods()
        return
    if not finetuned:
        raise ArgumentError("expected a base and at least one fine-tuned checkpoint; see taskarith merge --help")
    if output is None:
        raise ArgumentError("--output is missing: name the .safetensors file to write")
    manifest = merge_files(
        base, finetuned, output, method=method, overwrite=overwrite, **_parameters(parameter or [])
    )
    print(f"{output}: {manifest['tensors']} tensors, {method} {_settings(manifest['parameters'])}")


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


def _print_methods() -> None:
    from taskarith_fast.merge import merge_methods

    for name, row in merge_methods().items():
        print(f"{name}\n  {row['paper']}; needs {row['needs']}\n  {_settings(row['parameters']) or 'no parameters'}")


def _settings(parameters: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in parameters.items())


def _parameters(pairs: list[str]) -> dict[str, Any]:
    """``name=value`` pairs; a value is JSON where it parses as JSON, else text."""
    from taskarith_fast.errors import ArgumentError

    parameters = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ArgumentError(f"--parameter must look like name=value, got {pair!r}")
        try:
            parameters[name] = json.loads(value)
        except ValueError:
            parameters[name] = value
    return parameters
