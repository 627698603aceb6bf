"""Registers, spills, shared memory and 128-bit accesses of the compiled CUDA kernels, against the committed table.

These are the kernels of the development build, of one architecture; tools/compile_everywhere.py compares them all.
"""

import pytest

from tests.native.emulated import CSRC
from tools.ptxas_report import GROWTH, LIBRARY, REWRITE, Table, complaints, cuobjdump, measured, read_table, spills

WHOLE = ("for_each_vector", "load_some", "load_floats", "load_raw")


@pytest.fixture(scope="module")
def tool():
    found = cuobjdump()
    if found is None or not LIBRARY.exists():
        pytest.skip("no cuobjdump" if found is None else f"{LIBRARY.name} was not built: no nvcc")
    return found


@pytest.fixture(scope="module")
def now(tool):
    return measured([LIBRARY], tool)


def test_no_kernel_spills(tool):
    assert spills([LIBRARY], tool) == []


def test_no_kernel_differs_from_the_table(now):
    table = read_table()
    if not now.kernels.keys() & table.kernels.keys():
        pytest.skip(f"the table has no {sorted(now.kernels)}")
    assert complaints(now, table) == [], REWRITE


def test_sources_that_claim_wide_accesses_have_them(now):
    claim = {path.name for path in CSRC.glob("ops/cuda/*.cu") if any(word in path.read_text() for word in WHOLE)}
    for architecture, rows in now.kernels.items():
        wide = {name.partition(":")[0] for name, (_, _, loads, stores) in rows.items() if loads or stores}
        assert claim - wide == set(), architecture


def test_the_table_has_every_source_for_every_architecture():
    kernels = read_table().kernels
    assert sorted(kernels) == ["sm_100", "sm_80", "sm_90"]
    for architecture, rows in kernels.items():
        sources = {name.partition(":")[0] for name in rows}
        assert sources == {path.name for path in CSRC.glob("ops/cuda/*.cu")}, architecture


TABLE = Table("13.0", {"sm_90": {"a.cu: a_kernel": [40, 0, 4, 1], "b.cu: b_kernel": [32, 0, 0, 0]}})


@pytest.mark.parametrize("row", [[39, 0, 4, 1], [40, 1, 4, 1], [40, 0, 5, 1], [40, 0, 4, 0]])
def test_any_difference_by_the_same_compiler_is_named(row):
    now = Table("13.0", {"sm_90": {**TABLE.kernels["sm_90"], "a.cu: a_kernel": row}, "sm_80": {}})
    (found,) = complaints(now, TABLE)
    assert found.startswith("sm_90 a.cu: a_kernel: ") and found.endswith(" in the table")
    assert complaints(TABLE, TABLE) == []


def test_by_another_compiler_what_is_worse_is_named():
    better = Table("13.1", {"sm_90": {"a.cu: a_kernel": [40 + GROWTH, 512, 1, 9], "b.cu: b_kernel": [8, 0, 0, 0]}})
    assert complaints(better, TABLE) == []
    worse = {"sm_90": {"a.cu: a_kernel": [41 + GROWTH, 4096, 0, 2], "c.cu: c_kernel": [8, 0, 0, 0]}, "sm_80": {}}
    assert complaints(Table("13.1", worse), TABLE) == [
        "sm_90 a.cu: a_kernel: 0 128-bit loads, 4 in the table",
        "sm_90 a.cu: a_kernel: 4096 bytes of shared memory, 0 in the table",
        f"sm_90 a.cu: a_kernel: {41 + GROWTH} registers, 40 in the table",
        "sm_90 b.cu: b_kernel: in the table, not compiled",
        "sm_90 c.cu: c_kernel: not in the table",
    ]
