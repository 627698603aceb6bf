import dataclasses

import pytest

from taskarith_fast.errors import ArgumentError
from taskarith_fast.loops.config import FinetuneConfig
from taskarith_fast.loops.evaluate import evaluate, load_state
from taskarith_fast.loops.finetune import DivergedError
from taskarith_fast.loops.search import search_lr
from taskarith_fast.models import random_head
from tests.loops.tiny import digits, vit

SHORT = FinetuneConfig(steps=30, batch_size=32, warmup=5, train_head=True, device="cpu")


def test_the_best_rate_on_validation_images_is_picked_from_the_grid():
    found = search_lr(vit(), None, digits(), SHORT, lrs=(1e30, 1e-2, 1e-7))
    assert found.lr == 1e-2 and list(found.scores) == [1e-7, 1e-2, 1e30]
    assert found.scores[1e30] is None and found.scores[1e-7] < found.scores[1e-2]
    assert found.result.config == dataclasses.replace(SHORT, lr=1e-2)
    encoder, head = vit(), random_head(16, 10, seed=0)
    load_state(encoder, found.result.state)
    load_state(head, found.result.head_state)
    assert evaluate(encoder, head, digits().splits["val"]).accuracy == found.scores[1e-2]


def test_the_smallest_of_equal_rates_wins():
    frozen = dataclasses.replace(SHORT, steps=1, train_head=False)
    found = search_lr(vit(), random_head(16, 10, seed=0), digits(), frozen, lrs=(2e-12, 1e-12))
    assert found.scores[1e-12] == found.scores[2e-12] and found.lr == 1e-12


def test_a_grid_without_a_usable_rate_is_an_error():
    with pytest.raises(ArgumentError, match="lrs must hold at least one learning rate, got none"):
        search_lr(vit(), None, digits(), SHORT, lrs=())
    with pytest.raises(DivergedError, match="add smaller ones"):
        search_lr(vit(), None, digits(), SHORT, lrs=(1e30,))
