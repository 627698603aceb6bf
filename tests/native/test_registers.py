"""Registers, spills, shared memory and 128-bit accesses of the compiled CUDA kernels, against the committed table."""

import json

import pytest

from tests.native.emulated import CSRC
from tools.ptxas_report import GROWTH, LIBRARY, TABLE, complaints, cuobjdump, measured, usages

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
    assert [row for row in usages(LIBRARY, tool) if row.stack or row.local] == []


def test_no_kernel_has_grown_or_lost_its_wide_accesses(now):
    table = json.loads(TABLE.read_text())
    if not now.keys() & table.keys():
        pytest.skip(f"the table has no {sorted(now)}; python tools/ptxas_report.py --write adds them")
    assert complaints(now, table) == []


def test_sources_that_claim_wide_accesses_have_them(now):
    claim = {path.name for path in CSRC.glob("ops/cuda/*.cu") if any(word in path.read_text() for word in WHOLE)}
    for architecture, rows in now.items():
        wide = {name.partition(":")[0] for name, (_, _, loads, stores) in rows.items() if loads or stores}
        assert claim - wide == set(), architecture


def test_the_table_has_every_source():
    for architecture, rows in json.loads(TABLE.read_text()).items():
        sources = {name.partition(":")[0] for name in rows}
        assert sources == {path.name for path in CSRC.glob("ops/cuda/*.cu")}, architecture


def test_complaints_name_what_is_worse():
    table = {"sm_90": {"a.cu: a_kernel": [40, 0, 4, 1], "b.cu: b_kernel": [32, 0, 0, 0]}}
    assert complaints(table, table) == []
    now = {"sm_90": {"a.cu: a_kernel": [41 + GROWTH, 4096, 0, 2], "c.cu: c_kernel": [8, 0, 0, 0]}, "sm_80": {}}
    assert complaints(now, table) == [
        "sm_90 a.cu: a_kernel: 4096 bytes of shared memory, 0 in the table",
        f"sm_90 a.cu: a_kernel: {41 + GROWTH} registers, 40 in the table",
        "sm_90 a.cu: a_kernel: no 128-bit loads, 4 in the table",
        "sm_90 b.cu: b_kernel: in the table, not compiled",
        "sm_90 c.cu: c_kernel: not in the table",
    ]
