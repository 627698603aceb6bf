"""Numbers, figures and reports about merged models; numbers apart from plots."""

from taskarith_fast.analysis.cosine import cosine_map
from taskarith_fast.analysis.disentanglement import Disentanglement, disentanglement_error, symmetric_kl
from taskarith_fast.analysis.edits import Edits

__all__ = [
    "Disentanglement",
    "Edits",
    "cosine_map",
    "disentanglement_error",
    "symmetric_kl",
]
