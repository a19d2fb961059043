"""Writes the tree of docs/architecture.md: each file of hf_tl with the first sentence of its docstring.

python docs/architecture_tree.py
"""

import ast
import re
from pathlib import Path


PACKAGE = Path(__file__).parent.parent / "hf_tl"
PAGE = Path(__file__).parent / "architecture.md"


def document(page: str) -> str:
    """The page with its tree written anew."""
    return re.sub(r"```\nhf_tl/\n.*?```", f"```\n{tree()}\n```".replace("\\", r"\\"), page, flags=re.DOTALL)


def tree() -> str:
    """A line for each file and folder, files of a folder below it."""
    lines = ["hf_tl/"]
    for path in sorted(PACKAGE.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.suffix == ".py" and path.name != "__init__.py":
            lines.append(_line(path, indent=2))
        elif path.is_dir() and path.name != "__pycache__":
            lines.append(f"  {path.name + '/':26} {_summary(path / '__init__.py')}")
            lines += [_line(inner, indent=4) for inner in sorted(path.glob("*.py")) if inner.name != "__init__.py"]
    return "\n".join(lines)


def _line(path: Path, *, indent: int) -> str:
    return f"{' ' * indent}{path.name:{28 - indent}} {_summary(path)}"


def _summary(path: Path) -> str:
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
    return " ".join(first.split()).rstrip(".")


if __name__ == "__main__":
    PAGE.write_text(document(PAGE.read_text()))
