"""Print the requirements of pyproject.toml, all extras included, one a line.

They are installed in one command before the package is built, so that torch and torchvision come as a matching pair.
"""

from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]
groups = [project["dependencies"], *project["optional-dependencies"].values()]
print("\n".join(sorted({r for group in groups for r in group if not r.startswith("taskarith_fast")})))
