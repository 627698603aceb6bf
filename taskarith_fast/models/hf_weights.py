"""Weights of Hugging Face repositories, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import transformers

from taskarith_fast.errors import CheckpointError


def load_weights(
    library: Any, family: str, name: str, config: Any, options: dict[str, bool], known: Iterable[str]
) -> Any:
    """Build a class of transformers with the weights of a repository or folder.

    Args:
        library: The class.
        family: What stands before the colon in the model's name.
        name: What stands after it.
        config: Configuration of the model.
        options: Further arguments of the class.
        known: Names that need no files for random weights.

    Raises:
        CheckpointError: If the weights are not to be had, or a tensor is missing.
    """
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # unused heads and cut blocks are no news
    try:
        model, report = library.from_pretrained(name, config=config, output_loading_info=True, **options)
    except OSError as error:
        raise absent(f"{family}:{name}", error, known) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{family}:{name} must hold every tensor of {library.__name__}, {len(missing)} are missing, "
            f"such as {missing[0]}"
        )
    return model


def absent(model: str, error: Exception, known: Iterable[str]) -> CheckpointError:
    """What to raise where files of a model are not to be had."""
    reason = str(error).splitlines()[0]
    return CheckpointError(
        f"{model}: not in the local cache and not to be had ({reason}); "
        f"random weights, pretrained=False, need no files for {', '.join(known)}"
    )
