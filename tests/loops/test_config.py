import json

import pytest

from taskarith_fast.errors import ArgumentError, BackendError
from taskarith_fast.loops.config import FINETUNE_PRESETS, PROBE_PRESETS, FinetuneConfig, ProbeConfig, describe
from taskarith_fast.loops.runtime import resolve_device


def test_the_paper_preset_is_the_published_recipe():
    paper = FINETUNE_PRESETS["paper"]
    assert (paper.total_steps(10**6), paper.batch_size, paper.lr, paper.warmup) == (2000, 128, 1e-5, 200)
    assert (paper.weight_decay, paper.betas, paper.clip, paper.schedule) == (0.1, (0.9, 0.999), 1.0, "cosine")
    assert FINETUNE_PRESETS["code"].warmup == 500
    assert PROBE_PRESETS["paper"].lrs == (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


def test_epochs_count_the_last_partial_batch_and_accumulation():
    assert FinetuneConfig(epochs=4, batch_size=32).total_steps(600) == 4 * 19
    assert FinetuneConfig(epochs=4, batch_size=32, accumulation=2).total_steps(600) == 38
    assert FinetuneConfig(epochs=0.01, batch_size=32).total_steps(600) == 1


@pytest.mark.parametrize("config", [*FINETUNE_PRESETS.values(), *PROBE_PRESETS.values()])
def test_a_config_survives_json(config):
    assert type(config)(**json.loads(json.dumps(describe(config)))) == type(config)(**describe(config))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (FinetuneConfig, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (FinetuneConfig, {"lr": float("nan")}, "lr must be at least 0, got nan"),
        (FinetuneConfig, {"epochs": 0}, "epochs must be positive or None, got 0"),
        (FinetuneConfig, {"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        (FinetuneConfig, {"recipe": "all"}, "recipe must be one of full, qkvo, p1"),
        (
            FinetuneConfig,
            {"precision": "float16"},
            "precision must be one of float32, bfloat16; got 'float16'",
        ),
        (ProbeConfig, {"solver": "sgd"}, "solver must be one of lbfgs, adamw; got 'sgd'"),
        (ProbeConfig, {"lrs": ()}, r"lrs must hold at least one positive number, got \[\]"),
        (ProbeConfig, {"cs": (0.0,)}, r"cs must hold at least one positive number, got \[0.0\]"),
    ],
)
def test_bad_values_are_named(kind, change, message):
    with pytest.raises(ArgumentError, match=message):
        kind(**change)


def test_an_unknown_device_is_named():
    with pytest.raises(ArgumentError, match="device must be auto, cpu, cuda or cuda:N; got 'gpu'"):
        resolve_device("gpu")


def test_a_missing_gpu_is_said(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"
    with pytest.raises(BackendError, match="device 'cuda' is not available"):
        resolve_device("cuda")
