"""A sweep file that is wrong costs one line, before any work."""

import pytest
import torch

import taskarith_fast as ta
from taskarith_fast.errors import TaskarithError
from taskarith_fast.loops.files import EncoderChoice
from taskarith_fast.loops.sweep.run import sweep
from tests.loops.sweep.tiny_sweep import GRID, write_models, write_sweep, write_tasks
from tests.loops.tiny import vit


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_tasks(folder)
    write_models(folder, vit())
    return folder


@pytest.fixture
def folder(files, tmp_path, monkeypatch):
    monkeypatch.setattr(EncoderChoice, "load", lambda self: vit())
    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


TRAIN = "\n[[train]]\npreset = 'demo'\n"
UNTUNED = ("finetuned =", "# finetuned =")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[encoder]", "speed = 3\n[encoder]"), "speed: extra inputs are not permitted; known keys: output, split"),
        (("depth =", "width ="), "encoder.width: extra inputs.*known keys: name, image_size, depth"),
        (("[encoder]", "split = 'all'\n[encoder]"), "split: input should be 'train', 'val' or 'test'"),
        (("[encoder]", "seeds = []\n[encoder]"), "seeds: list should have at least 1 item"),
        (("[encoder]", "seeds = [1, 1]\n[encoder]"), "seeds must differ, got 1 twice"),
        (("[encoder]", "images = -1\n[encoder]"), "images: input should be greater than or equal to 0"),
        (("[encoder]", "encoder ="), "no valid TOML"),
        (('method = "ties"', 'method = "tise"'), r"merge\[0\]: method must be one of .*did you mean 'ties'"),
        (('method = "ties"', ""), r"merge\[0\].method must name a merge method, got none"),
        (("density", "densty"), r"merge\[0\]: method 'ties' has the parameters .*did you mean 'density'"),
        (("[0.2, 0.5]", "[0.2, 5]"), r"density must be in \(0, 1\], got 5"),
        (("[0.2, 0.5]", "[]"), r"merge\[0\].density must hold at least one value, got none"),
        (("count = 3", "count = 0"), "in count steps"),
        (('method = "average"', 'method = "average"\nscale_over_density = true'), "needs a scale that is one number"),
        (('method = "average"', 'method = "average"\njudge = "some"'), r"merge\[2\].judge must be one of merged, all"),
        (("low.npz", "lov.npz"), "lov.npz"),
        (("low-head", "lov-head"), "lov-head.safetensors: no such checkpoint"),
        (("low-model", "lov-model"), "lov-model.safetensors: no such checkpoint"),
        (("low-head.safetensors", "low-model.safetensors"), "expected a head written by taskarith probe"),
        (("low-model.safetensors", "low-head.safetensors"), "expected the .* tensors of the encoder, but it lacks it"),
        (("[encoder]", 'base = "nothing.pt"\n[encoder]'), "nothing.pt: no such checkpoint"),
        (("[encoder]", 'output = "low.npz"\n[encoder]'), "output must be a folder or not exist yet"),
        (("[encoder]", "subset_sizes = [3]\n[encoder]"), "subset_sizes must be from 1 to the 2 tasks, got 3"),
        (("[encoder]", 'subsets = [["low", "mid"]]\n[encoder]'), r"subsets\[0\] must hold names among low, high"),
        ((GRID, ""), "a sweep must have .*merge.* tables, got neither"),
        ((GRID, GRID + TRAIN), "base and finetuned name what is trained already"),
        (UNTUNED, "task 'low.npz' must name its finetuned checkpoint, or there must be .*train"),
        ((GRID, GRID + "\n[probe]\npreset = 'demo'\n"), "probe. trains heads, but every task names its head"),
        ((GRID, GRID + "\n[halving]\neta = 1\n"), "halving.eta: input should be greater than or equal to 2"),
        ((GRID, GRID + "\n[halving]\n[optuna]\ntrials = 3\n"), "halving. and .optuna. exclude each other"),
    ],
)
def test_one_line_says_what_is_wrong(change, message, folder):
    path = write_sweep(folder)
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(change[0], change[1]))
    with pytest.raises(TaskarithError, match=message) as found:
        sweep(path, in_process=True, device="cpu")
    assert "\n" not in str(found.value)
    assert not (folder / "sweep").exists()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("preset = 'dmo'", r"train\[0\]: preset must be one of"),
        ("lrr = [0.1]", r"train\[0\]: settings must be among .*got 'lrr'"),
        ("lr = [-1.0]", r"train\[0\]: lr must be at least 0"),
        ("lr = ['a']", r"train\[0\]"),
        ("recipe = 'fulll'", "recipe must be one of"),
        ("seed = 3", r"train\[0\].seed is given by the sweep itself"),
        ("recipe = 'talos'", r"recipe 'talos' trains masked weights; add \[train.masks\]"),
        ("[train.masks]\ndensity = 0.1", "masks must go with a sparse recipe"),
        ("recipe = 'talos'\n[train.masks]\ndensty = 0.1", r"train\[0\].masks: settings must be among .*got 'densty'"),
        ("recipe = 'talos'\n[train.masks]\nmethod = 'lota'", "method must be talos, magnitude or random in a sweep"),
        ("masks = 3", r"train\[0\].masks must be a table"),
    ],
)
def test_one_line_says_what_is_wrong_with_a_recipe(table, message, folder):
    path = write_sweep(folder, f"\n[[train]]\n{table}\n")
    path.write_text(path.read_text().replace(*UNTUNED))
    with pytest.raises(TaskarithError, match=message) as found:
        sweep(path, in_process=True, device="cpu")
    assert "\n" not in str(found.value)
    assert not (folder / "sweep").exists()


def test_models_of_another_encoder_are_refused(folder):
    state = {n: t for n, t in vit().state_dict().items()}
    name = next(n for n, t in state.items() if t.dim() == 2)
    state[name] = torch.zeros(3, 3)
    ta.save_state_dict(state, folder / "other.safetensors")
    path = write_sweep(folder)
    path.write_text(path.read_text().replace("low-model", "other"))
    with pytest.raises(TaskarithError, match=r"must have shape .* as in the encoder, got \[3, 3\]"):
        sweep(path, in_process=True)


def test_a_database_of_another_schema_is_refused(folder):
    import sqlite3

    (folder / "sweep").mkdir()
    database = sqlite3.connect(folder / "sweep" / "sweep.sqlite")
    database.execute("CREATE TABLE other (x)")
    database.close()
    with pytest.raises(TaskarithError, match="got another program's"):
        sweep(write_sweep(folder), in_process=True)


@pytest.mark.parametrize(
    ("name", "message"), [("a.txt", "export must end in"), ("no/a.csv", "in a folder that is there")]
)
def test_an_export_that_cannot_be_written_is_refused_first(name, message, folder):
    with pytest.raises(TaskarithError, match=message):
        sweep(write_sweep(folder), in_process=True, export=folder / name)
    assert not (folder / "sweep").exists()
