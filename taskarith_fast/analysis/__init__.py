"""Numbers, figures and reports about merged models; numbers apart from plots."""

from taskarith_fast.analysis.cosine import cosine_map

__all__ = ["cosine_map"]
