"""Optimizers that train, and hold state for, the selected entries only."""

from taskarith_fast.optim.adamw import SparseAdamW
from taskarith_fast.optim.sgd import SparseSGD

__all__ = ["SparseAdamW", "SparseSGD"]
