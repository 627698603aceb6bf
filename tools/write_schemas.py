"""Write the C++ source by which a library of operators says for which schemas it was built.

    python tools/write_schemas.py OUT.cpp

CMake runs it when an operator's Python file changes; taskarith_fast/native.py reads the text in the library's file,
without loading it. A file that says the same already is left alone, so that nothing is compiled again.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def source() -> str:
    """The source for the operators of this tree."""
    from taskarith_fast import native
    from taskarith_fast.ops._contract import schemas

    text = native.SCHEMAS_MARK + "".join(f"{name}{schema}\n" for name, schema in schemas().items())
    return f'__attribute__((used)) static const char kSchemas[] = R"schemas({text})schemas";\n'


def main() -> None:
    from taskarith_fast import native

    native.LIBRARY_DIR = Path("nowhere")  # what was compiled before has no say
    path, text = Path(sys.argv[1]), source()
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


if __name__ == "__main__":
    main()
