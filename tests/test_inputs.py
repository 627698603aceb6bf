"""Batches of images and of texts have one interface."""

from __future__ import annotations

import torch

from taskarith_fast import inputs

TEXTS = {"input_ids": torch.tensor([[5, 6, 0], [7, 8, 9]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}


def test_images_and_texts_are_counted_cut_and_moved_alike() -> None:
    for batch in (torch.arange(12.0).view(2, 6), TEXTS):
        assert inputs.count(batch) == 2
        assert inputs.count(inputs.rows(batch, slice(1, 2))) == 1
        assert inputs.count(inputs.moved(batch, "cpu")) == 2


def test_images_are_given_as_they_are_and_texts_by_name() -> None:
    assert torch.equal(inputs.call(lambda x: x + 1, torch.zeros(2)), torch.ones(2))
    assert torch.equal(inputs.call(lambda input_ids, attention_mask: input_ids * attention_mask, TEXTS)[0, :2],
                       torch.tensor([5, 6]))  # fmt: skip


def test_joined_texts_are_padded_to_the_longest_and_answers_by_what_marks_absence() -> None:
    short = {name: tensor[:1, :2] for name, tensor in TEXTS.items()} | {"answers": torch.ones(1, 2, 1).long()}
    both = inputs.joined([short, TEXTS | {"answers": torch.ones(2, 3, 2).long()}])
    assert both["input_ids"].tolist() == [[5, 6, 0], [5, 6, 0], [7, 8, 9]]
    assert both["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    assert both["answers"].shape == (3, 3, 2)
    assert both["answers"][0].tolist() == [[1, -100], [1, -100], [-100, -100]]
    assert torch.equal(inputs.joined([torch.zeros(1, 2), torch.ones(2, 2)]), torch.tensor([[0.0, 0], [1, 1], [1, 1]]))
