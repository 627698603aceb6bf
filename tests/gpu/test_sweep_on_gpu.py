"""A sweep on a GPU finds what it finds on the processor, in this process and in one of its own."""

import pytest

from taskarith_fast.loops.files import EncoderChoice
from taskarith_fast.loops.sweep.run import sweep
from tests.loops.sweep.tiny_sweep import IMAGES, make_folder, values, write_models, write_sweep, write_tasks
from tests.loops.tiny import vit


def _assert_near(found, expected):
    """Rounding may turn a prediction that hangs in the balance: at most one image of each task."""
    columns = ("accuracy.low", "accuracy.high")
    merges = [[r for r in records if r["kind"] == "merge"] for records in (found, expected)]
    ours, theirs = (values(records, *columns) for records in merges)
    assert abs(ours - theirs).max() <= 1.001 / IMAGES


def test_in_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr(EncoderChoice, "load", lambda self: vit())
    write_tasks(tmp_path)
    write_models(tmp_path, vit())
    expected = sweep(write_sweep(tmp_path, head='output = "here"'), in_process=True, device="cpu")
    found = sweep(write_sweep(tmp_path, head='output = "there"'), in_process=True, device="cuda")
    assert found.failed == 0
    _assert_near(found.records, expected.records)


@pytest.mark.slow
def test_by_two_workers_on_one_gpu(tmp_path):
    path = make_folder(tmp_path)
    expected = sweep(write_sweep(tmp_path, head='output = "here"'), in_process=True, device="cpu")
    found = sweep(path, workers=2, device="cuda")
    assert found.failed == 0
    _assert_near(found.records, expected.records)
