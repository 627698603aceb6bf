"""Class names and templates of the eight datasets."""

from __future__ import annotations

import pytest

from taskarith_fast.data import load_prompts
from taskarith_fast.data.prompts import DATASETS
from taskarith_fast.errors import ArgumentError

SIZES = {
    "cars": (196, 8),
    "dtd": (47, 8),
    "eurosat": (10, 3),
    "gtsrb": (43, 3),
    "mnist": (10, 1),
    "resisc45": (45, 18),
    "sun397": (397, 2),
    "svhn": (10, 1),
}


@pytest.mark.parametrize("name", DATASETS)
def test_classes_and_templates_have_the_published_sizes(name) -> None:
    prompts = load_prompts(name)
    assert (len(prompts.classes), len(prompts.templates)) == SIZES[name]
    assert len(set(prompts.classes)) == len(prompts.classes)
    assert all(template.count("{}") == 1 for template in prompts.templates)


@pytest.mark.parametrize("name", ["dtd", "resisc45", "sun397"])
def test_classes_named_after_folders_are_in_folder_order(name) -> None:
    classes = list(load_prompts(name).classes)
    assert classes == sorted(classes)


def test_names_are_accepted_in_any_case_and_others_are_refused() -> None:
    assert load_prompts("SUN397") is load_prompts("sun397")
    with pytest.raises(ArgumentError, match=r"name must be one of cars, dtd, .*, got 'imagenet'"):
        load_prompts("imagenet")
