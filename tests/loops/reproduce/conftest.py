"""Texts small enough for a test in place of those that the language columns are of."""

import dataclasses

import pytest

from taskarith_fast.loops.demo import limit_tasks
from taskarith_fast.loops.reproduce import language
from tests.loops.texts import text_encoder, text_task


@pytest.fixture(autouse=True)
def tiny_texts(monkeypatch):
    def setting(beside):
        config = dataclasses.replace(beside.config, encoder="tiny, of texts", image_size=None, texts=True)
        tasks = {name: text_task(name) for name in ("animals", "things")}
        return language.TextSetting(config, text_encoder(), limit_tasks(tasks, config), papers=False)

    monkeypatch.setattr(language, "text_setting", setting)
