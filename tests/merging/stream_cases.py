"""Models in files for the tests of the streaming engine."""

import json
import math

import torch
from safetensors.torch import load_file, save_file

import taskarith_fast as ta
from taskarith_fast.merging import METHODS

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def make_models(shapes, tasks, dtypes=("F32",), seed=0, spread=1e-2, integers=True):
    """base and T models: name -> tensor; `dtypes` go round over models and tensors, deltas repeat some values."""
    g = torch.Generator().manual_seed(seed)
    base = {f"{chr(97 + i % 26)}{i}": torch.randn(s, generator=g) for i, s in enumerate(shapes)}
    models = [base] + [
        {k: v + (spread * torch.randn(v.shape, generator=g) * 8).round() / 8 for k, v in base.items()}
        for _ in range(tasks)
    ]
    out = [
        {k: v.to(DTYPES[dtypes[(m + i) % len(dtypes)]]).contiguous() for i, (k, v) in enumerate(model.items())}
        for m, model in enumerate(models)
    ]
    if integers:
        for model in out:
            model["ids"] = torch.arange(5).reshape(1, 5)
            model["flag"] = torch.tensor(True)
    return out


def write_models(models, folder, shards=1):
    """One file a model, or a directory of shards with an index."""
    paths = []
    for i, model in enumerate(models):
        if shards == 1:
            paths.append(folder / f"m{i}.safetensors")
            save_file(model, paths[-1])
            continue
        paths.append(folder / f"m{i}")
        paths[-1].mkdir()
        names, weight_map = sorted(model), {}
        step = math.ceil(len(names) / shards)
        for j in range(0, len(names), step):
            part = names[j : j + step]
            file = f"model-{j // step + 1:05d}-of-{math.ceil(len(names) / step):05d}.safetensors"
            save_file({k: model[k] for k in part}, paths[-1] / file)
            weight_map.update(dict.fromkeys(part, file))
        (paths[-1] / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return paths


def make_statistics(method, models, seed=0, skip=()):
    """The argument that `method` needs besides the models: {"fishers": [...]}, {"grams": [...]}, or nothing."""
    statistics = METHODS[method].streaming.statistics
    if statistics is None:
        return {}
    g = torch.Generator().manual_seed(seed)
    names = sorted(name for name, tensor in models[0].items() if tensor.is_floating_point() and name not in skip)
    make = {"fishers": _make_fisher, "grams": _make_gram}[statistics.parameter]
    tasks = []
    for _ in models[1:]:
        made = {name: make(tuple(models[0][name].shape), g) for name in names}
        tasks.append({name: tensor for name, tensor in made.items() if tensor is not None})
    return {statistics.parameter: tasks}


def write_statistics(statistics, folder):
    """The same argument as paths, one file a task."""
    return {
        parameter: [ta.save_state_dict(one, folder / f"{parameter}{t}.safetensors") for t, one in enumerate(tasks)]
        for parameter, tasks in statistics.items()
    }


def _make_fisher(shape, g):
    return (torch.randn(shape, generator=g).clamp_min(0) * 1e-5).square()


def _make_gram(shape, g):
    if len(shape) != 2 or 0 in shape or shape[1] > 300:
        return None
    x = torch.randn(shape[1] // 2 + 1, shape[1], generator=g)
    return x.T @ x / len(x)


def read_output(path):
    """All tensors of a file or a directory."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return {k: v for f in files for k, v in load_file(f).items()}


def in_memory(models, method, dtype=None, **parameters):
    """What ``merge`` gives for models brought to the arithmetic's type, tensor by tensor, in the output's type."""
    work, final = [dict(m) for m in models], {}
    for name, tensor in models[0].items():
        if not tensor.is_floating_point():
            continue
        final[name] = dtype or tensor.dtype
        if len({m[name].dtype for m in models} | {final[name]}) > 1:
            for model in work:
                model[name] = model[name].float()
    merged = ta.merge(work[0], work[1:], method, **parameters)
    return {k: v.to(final.get(k, v.dtype)) for k, v in merged.items()}


def assert_same_bytes(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        other = found[name]
        assert other.dtype == tensor.dtype and other.shape == tensor.shape, name
        same = other.contiguous().reshape(-1).view(torch.uint8), tensor.contiguous().reshape(-1).view(torch.uint8)
        assert torch.equal(*same), f"{name}: {int((same[0] != same[1]).sum())} bytes differ"
