"""Language models on the command line: T5 without heads, BERT with them, and what does not fit in one line."""

import json

import pytest
import torch
from typer.testing import CliRunner

from taskarith_fast.checkpoint import load_state_dict
from taskarith_fast.cli import app
from taskarith_fast.errors import ArgumentError, DataError, TaskarithError
from taskarith_fast.masks import Masks
from tests.data.test_text_datasets import ROWS, write
from tests.models.language import tiny_language_model
from tests.models.words import tokenizer

transformers = pytest.importorskip("transformers")
SHORT = ("-s", "steps=3", "-s", "batch_size=4", "-s", "lr=1e-2", "-s", "warmup=0", "-s", "device=cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Models t5, bert and other, whose tokenizer is another model's; RTE in rte; a file of texts."""
    monkeypatch.chdir(tmp_path)
    for name, kind, extra in (("t5", "t5", 0), ("bert", "bert", 0), ("other", "t5", 700)):
        tiny_language_model(kind).save_pretrained(name)
        backend = tokenizer(extra=extra)._backend
        transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]").save_pretrained(name)
    lines = [
        f"{split}\t{animal}\tbig old {animal}" for split in ("train", "val", "test") for animal in ("cat", "dog")
    ] * 4
    (tmp_path / "animals.tsv").write_text("\n".join(["split\tlabel\ttext", *lines]))
    (tmp_path / "long.tsv").write_text("\n".join(["split\tlabel\ttext", *lines, "val\tcat\t" + "cat " * 30]))
    return tmp_path


@pytest.fixture
def rte(folder, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    (folder / "rte").mkdir()
    write(folder / "rte", "rte", count=20, validation=6)
    return folder


def run(*words):
    done = CliRunner().invoke(app, list(words))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(error, match, *words):
    with pytest.raises(error, match=match) as found:
        run(*words)
    assert isinstance(found.value, TaskarithError) and "\n" not in str(found.value)


def test_t5_is_planned_trained_and_evaluated_without_heads(rte):
    words = (
        "finetune",
        "--encoder",
        "t5:t5",
        "--task",
        "rte@rte",
        "--preset",
        "paper_t5",
        *SHORT,
        "-s",
        "accumulation=1",
    )
    assert "4 texts a pass" in run(*words, "--plan")
    assert "encoder for rte, loss" in run(*words, "-o", "rte.safetensors")
    start = {n: p for n, p in tiny_language_model("t5").named_parameters()}
    state = load_state_dict("rte.safetensors")
    assert any(not torch.equal(state[name], p) for name, p in start.items())
    out = run("evaluate", "--encoder", "t5:t5", "--task", "rte:1@rte", "--state", "rte.safetensors", "--device", "cpu")
    assert "rte" in out and "mean" in out


def test_talos_on_t5_steps_in_the_backward_pass(rte):
    run("calibrate", "--encoder", "t5:t5", "--task", "rte@rte", "-o", "masks.safetensors", "-s", "device=cpu",
        "-s", "rounds=1", "-s", "batch_size=4", "-s", "batches=1", "-s", "labels=sampled")  # fmt: skip
    words = ("finetune", "--encoder", "t5:t5", "--task", "rte@rte", "--preset", "paper_t5", "--recipe", "talos",
             "--masks", "masks.safetensors", *SHORT, "-s", "accumulation=1", "-s", "step_in_backward=true")  # fmt: skip
    assert "gradients" in run(*words, "--plan")
    run(*words, "-o", "out.safetensors")
    masks, state = Masks.load("masks.safetensors"), load_state_dict("out.safetensors")
    moved = {n: state[n] != p for n, p in tiny_language_model("t5").named_parameters()}
    assert any(m.any() for m in moved.values())
    assert not any((m & ~masks[n]).any() if n in masks else m.any() for n, m in moved.items())


def test_texts_over_the_limit_are_refused_before_any_work_or_cut_and_counted(folder):
    words = ("probe", "--encoder", "bert:bert", "--task", "long.tsv", "-o", "head.safetensors", "--preset", "demo",
             "-s", "device=cpu")  # fmt: skip
    refused(ArgumentError, r"text must have at most 20 tokens, got 32 in 'cat cat .*\(--truncate 20\)", *words)
    assert not (folder / "head.safetensors").exists()
    run(*words, "--truncate", "12")
    (folder / "animals.tsv").write_text((folder / "long.tsv").read_text().replace("val\tcat\tcat", "train\tcat\tcat"))
    cut = ("finetune", "--encoder", "bert:bert", "--task", "animals.tsv", "--head", "head.safetensors",
           "--truncate", "12", *SHORT)  # fmt: skip
    assert run(*cut, "-o", "out.safetensors").strip().endswith("1 training texts cut")
    refused(ArgumentError, "at most 20 tokens", *cut[:7], *SHORT, "-o", "again.safetensors")


def test_what_does_not_fit_is_one_line(rte):
    t5 = ("finetune", "--encoder", "t5:t5", *SHORT, "-o", "out.safetensors")
    refused(ArgumentError, "template must be from 0 to 1 for rte, got 7", *t5, "--task", "rte:7@rte")
    refused(ArgumentError, "template must be a number, as in rte:0@rte, got 'x'", *t5, "--task", "rte:x@rte")
    refused(ArgumentError, "must come with its choices for a model that answers", *t5, "--task", "animals.tsv")
    refused(ArgumentError, "tokenizer must be the model's: it has 701 ids", *t5[:1], "--encoder", "t5:other", *t5[3:],
            "--task", "rte@rte")  # fmt: skip
    refused(
        ArgumentError, "scores answers and needs no head", "probe", *t5[1:3], "--task", "rte@rte", "-o", "x.safetensors"
    )
    bert = ("finetune", "--encoder", "bert:bert", *SHORT, "-o", "out.safetensors", "--task", "animals.tsv")
    refused(ArgumentError, "the head of animals must be given, by --head; heads are written by taskarith probe", *bert)
    refused(ArgumentError, "must be left out for a model that scores answers", *t5, "--task", "rte@rte", "--head", "x")
    rows = [ROWS["rte"](n) | {"label": 7} for n in range(9)]
    (rte / "rte" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    refused(DataError, "label: the answer must be one of 0, 1, got 7", *t5, "--task", "rte@rte")
    (rte / "rte" / "train.jsonl").write_text("\n".join(json.dumps({"premise": "It is.", "label": 0}) for _ in range(9)))
    refused(DataError, "rte: rows must have hypothesis, label, premise, but lack hypothesis", *t5, "--task", "rte@rte")
    assert not (rte / "out.safetensors").exists()
