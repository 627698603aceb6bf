"""The language columns of TaLoS's tables."""

from types import SimpleNamespace

import pytest

from taskarith_fast.analysis.outcome import Check, Outcome, Table
from taskarith_fast.errors import CheckpointError
from taskarith_fast.loops.demo_config import TEXT_PRESETS
from taskarith_fast.loops.reproduce import language
from taskarith_fast.loops.reproduce.bench import Bench
from taskarith_fast.loops.reproduce.published import published
from taskarith_fast.loops.reproduce.setting import Setting
from taskarith_fast.loops.stages import Store
from tests.loops.reproduce.test_reproduce import TINY
from tests.loops.tiny import digits, vit


def _bench(tmp_path):
    return Bench(Setting(TINY, vit(), {"digits": digits()}, papers=False), Store(tmp_path))


def _protocol(bench, _):
    """A table of one row that says where it ran."""
    name = bench.setting.config.encoder
    bench.cost[name] = SimpleNamespace(seconds=1.0)
    return Outcome([Table("T", ["method", "here, abs", "paper, T5-S abs"], [["a", name, "65"]], "Note.")],
                   [Check("a is above b", 1.0, 0.1)])  # fmt: skip


def test_texts_get_columns_checks_and_costs_beside_those_of_images(tmp_path):
    bench = _bench(tmp_path)
    found = language.beside(bench, published()["talos/table1"], protocol=_protocol)
    (table,) = found.tables
    assert table.columns == ["method", "here, abs", "here, texts, abs", "paper, T5-S abs"]
    assert table.rows == [["a", "tiny", "tiny, of texts", "65"]]
    assert table.note.startswith("Note. Texts: tiny, of texts on animals, things") and "T5's weights" in table.note
    assert [check.statement for check in found.checks] == ["a is above b", "on texts, a is above b"]
    assert set(bench.cost) == {"tiny", "tiny, of texts"}


def test_without_the_text_encoder_the_page_says_why(tmp_path, monkeypatch):
    def absent(_):
        raise CheckpointError("no wheel")

    monkeypatch.setattr(language, "text_setting", absent)
    found = language.beside(_bench(tmp_path), published()["talos/table1"], protocol=_protocol)
    assert found.tables[0].columns == ["method", "here, abs", "paper, T5-S abs"]
    assert found.tables[0].note == "Note. No columns for texts: no wheel."


@pytest.mark.parametrize("recipe", ["full", "linearized", "talos", "lota", "lora"])
def test_recipes_are_those_of_the_demo_of_texts(recipe):
    setting = language.TextSetting(TEXT_PRESETS["default"], vit(), {}, papers=False)
    assert setting.recipe(recipe) == TEXT_PRESETS["default"].recipes[recipe]
