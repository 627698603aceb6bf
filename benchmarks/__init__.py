"""Benchmarks: ``python -m benchmarks`` (ratios, floors, JSON) and ``pytest benchmarks --benchmark-only`` (regressions).

Both read the table in ``benchmarks/cases.py``. A speed claim is a ratio between two things measured in one run,
interleaved, as medians; seconds of different runs are never compared.
"""
