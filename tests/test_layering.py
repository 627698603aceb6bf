"""Imports go down only, and importing the package is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "taskarith_fast"

# A module may import from its own layer and from lower numbers.
LAYERS = {
    "__main__": 7,
    "cli": 6,
    "loops": 5,
    "merging": 4, "tangent": 4, "optim": 4, "analysis": 4, "models": 4, "data": 4, "capture": 4,
    "task_vector": 3, "sparse_task_vector": 3, "masks": 3,
    "checkpoint": 2, "formats": 2,
    "ops": 1, "kernels": 1,
    "native": 0, "errors": 0, "progress": 0, "hashing": 0, "inputs": 0,
}  # fmt: skip

MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" or p.parent != PACKAGE)


def _layer(module: str) -> int:
    name = module.split(".")[1]
    assert name in LAYERS, f"{module}: give {name!r} a layer in tests/test_layering.py"
    return LAYERS[name]


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {n for n in names if n.startswith("taskarith_fast.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    module = ".".join(("taskarith_fast", *path.relative_to(PACKAGE).with_suffix("").parts))
    for imported in _imports(path):
        assert _layer(imported) <= _layer(module), f"{module} imports {imported}, which is above it"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_methods_do_not_import_each_other(path):
    parts = path.relative_to(PACKAGE).parts
    peers = {"merging", "tangent", "optim", "analysis"}
    if parts[0].removesuffix(".py") in peers:
        for imported in _imports(path):
            name = imported.split(".")[1]
            assert name not in peers - {parts[0].removesuffix(".py")}, f"{path.name} imports its peer {imported}"


def test_triton_is_imported_in_kernels_only():
    for path in MODULES:
        names = {n.split(".")[0] for node in ast.walk(ast.parse(path.read_text())) for n in _imported(node)}
        assert "triton" not in names, path


def _imported(node):
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, taskarith_fast; print([m for m in ('torch', 'numpy', 'triton', 'open_clip') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_hashing_begins_before_anything_heavy_is_imported():
    code = "import sys, taskarith_fast.hashing; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_merge_without_a_recipe_does_not_import_what_recipes_need():
    code = "import sys, taskarith_fast.merging; print([m for m in ('pydantic', 'torchvision') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_every_public_name_resolves():
    import taskarith_fast as ta

    for name in ta.__all__:
        assert getattr(ta, name) is not None
