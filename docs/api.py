"""Writes docs/api.md: every public name of hf_tl with its signature, its docstring and where it is written.

python docs/api.py [--check]

The source is read, not imported, so that it takes a second and needs none of the dependencies. With --check nothing is
written, and the exit code is 1 if docs/api.md is not what the source says.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "api.md"
WIDTH = 100
CHAPTERS = {  # the part of the house that a name is from -> the heading that its names stand under
    "layers": "The layers of a network",
    "models": "Networks and data",
    "data": "Networks and data",
    "classifier": "Networks and data",
    "embedding": "Reading a network",
    "probes": "Judging",
    "policies": "Training",
    "lora": "Adapting",
    "hub": "Sharing",
    "card": "Sharing",
    "plugins": "Extending",
    "errors": "Errors",
}
OTHERS = "More"
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
INTRODUCTION = """\
# The public names

Written by `python docs/api.py` from the docstrings; a test fails when it is stale. Everything below is imported as
`from hf_tl import NAME`, and nothing is loaded before it is used. The pages that start from a question are
[reading](embedding.md), [judging](probes.md), [training](policies.md) and [adapting](lora.md).
"""

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


@dataclass(frozen=True)
class Public:
    """A public name and the place where it is written.

    Attributes:
        name: as it is imported from hf_tl.
        path: of its file.
        node: its definition there.
        text: its docstring, or the string below an assignment.
    """

    name: str
    path: Path
    node: Definition
    text: str


def main() -> int:
    """Writes or checks the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is stale")
    check = parser.parse_args().check
    page = render()
    if check:
        return int(not PAGE.exists() or PAGE.read_text() != page)
    PAGE.write_text(page)
    print(f"wrote {PAGE.relative_to(ROOT)}: {page.count(chr(10) + '### ')} names")
    return 0


def render() -> str:
    """The whole page."""
    chapters: dict[str, list[Public]] = {heading: [] for heading in (*CHAPTERS.values(), OTHERS)}
    for public in public_names():
        part = public.path.relative_to(ROOT / "hf_tl").parts[0].removesuffix(".py")
        chapters[CHAPTERS.get(part, OTHERS)].append(public)
    listed = {heading: found for heading, found in chapters.items() if found}
    rows = [
        f"| {heading} | {', '.join(f'[{p.name}](#{p.name.lower()})' for p in found)} |"
        for heading, found in listed.items()
    ]
    lines = [INTRODUCTION, "| | |", "|---|---|", *rows, ""]
    for heading, found in listed.items():
        lines += [f"## {heading}", "", *(line for public in found for line in _entry(public))]
    return "\n".join(lines)


def public_names() -> list[Public]:
    """All names of hf_tl's `_HOMES`, in its order."""
    tree = _parse(ROOT / "hf_tl" / "__init__.py")
    homes = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and _target(n) == "_HOMES")
    return [find(name, home) for name, home in homes.items()]


def find(name: str, home: str) -> Public:
    """Where a name is defined, through any number of `from ... import`."""
    path = ROOT / Path(*home.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    body = _parse(path).body
    for i, node in enumerate(body):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return Public(name, path, node, ast.get_docstring(node) or "")
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and _target(node) == name:
            below = body[i + 1] if i + 1 < len(body) else None
            said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            return Public(name, path, node, inspect.cleandoc(below.value.value) if said else "")
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
            return find(name, node.module)
    raise LookupError(f"{name} is not defined in {path}")


def callables(public: Public) -> Iterator[tuple[str, ast.FunctionDef, str]]:
    """(name, definition, docstring) of a function, or of a class's constructor and public methods, inherited too.

    Methods called `on_...` are Trainer's events, which nobody calls.
    """
    if isinstance(public.node, ast.FunctionDef):
        yield public.name, public.node, public.text
    if not isinstance(public.node, ast.ClassDef):
        return
    seen = set()
    for owner in _lineage(public):
        for node in owner.node.body:
            if not isinstance(node, ast.FunctionDef) or node.name in seen:
                continue
            seen.add(node.name)
            if node.name == "__init__":
                yield public.name, node, owner.text
            elif not node.name.startswith(("_", "on_")) and not _decorated(node, "setter", "overload"):
                yield f"{public.name}.{node.name}", node, ast.get_docstring(node) or ""


def fields(public: Public) -> list[ast.AnnAssign]:
    """The fields of a dataclass; none for anything else."""
    if not isinstance(public.node, ast.ClassDef) or not _decorated(public.node, "dataclass"):
        return []
    found = [node for node in public.node.body if isinstance(node, ast.AnnAssign)]
    return [node for node in found if not ast.unparse(node.annotation).startswith("ClassVar")]


def described(text: str) -> set[str]:
    """The names that a docstring describes under Args and Attributes."""
    found = set()
    for section, body in _sections(text):
        if section in ("Args", "Attributes"):
            found |= {name.strip("*") for name, _ in _items(body)}
    return found


def parameters(node: ast.FunctionDef) -> list[str]:
    """Names of a function's parameters, but for self and cls."""
    a = node.args
    every = [
        *a.posonlyargs,
        *a.args,
        *([a.vararg] if a.vararg else []),
        *a.kwonlyargs,
        *([a.kwarg] if a.kwarg else []),
    ]
    return [one.arg for one in every if one.arg not in ("self", "cls")]


def to_markdown(text: str) -> str:
    """A docstring in Google's style as Markdown: sections become lists, indented formulas code."""
    parts = []
    for section, body in _sections(text):
        if section is None:
            parts.append(_escape(body.strip()))
        elif section in ("Returns", "Yields"):
            parts.append(f"*{section}*: {_escape(_join(body))}")
        else:
            items = [f"- {_term(name, section)}: {_escape(_join(said))}" for name, said in _items(body)]
            parts.append("\n".join([f"*{section}*", "", *items]))
    return "\n\n".join(part for part in parts if part)


def _entry(public: Public) -> list[str]:
    where = public.path.relative_to(ROOT)
    lines = [f"### {public.name}", "", "```", _signature(public), "```", "", to_markdown(public.text), ""]
    for name, node, text in callables(public):
        if isinstance(public.node, ast.FunctionDef) or node.name == "__init__":
            continue
        kind = _decorated(node, "property", "cached_property")
        shown = name if kind else _layout(name, node)
        lines += [f"**`{shown}`**" if "\n" not in shown else f"```\n{shown}\n```", "", to_markdown(text), ""]
    return [*lines, f"[{where}](../{where.as_posix()})", ""]


def _signature(public: Public) -> str:
    if isinstance(public.node, (ast.Assign, ast.AnnAssign)):
        value = ast.unparse(public.node)
        return value if len(value) <= WIDTH else f"{public.name} = ..."
    made = next((node for _, node, _ in callables(public) if node.name in (public.name, "__init__")), None)
    if made is not None:
        return _layout(public.name, made)
    if not fields(public):
        bases = [base for base in map(ast.unparse, public.node.bases) if not base.startswith("_")]
        return f"class {public.name}({', '.join(bases)})" if bases else f"{public.name}()"
    shown = [f for f in fields(public) if "init=False" not in ast.unparse(f)]
    arguments = [ast.unparse(field).replace(" = field(default_factory=dict)", " = {}") for field in shown]
    arguments = [re.sub(r" = field\(.*\)", " = ...", one) for one in arguments]
    return _wrap(f"{public.name}(", arguments, ")")


def _layout(name: str, node: ast.FunctionDef) -> str:
    arguments = node.args
    own = [a for a in (*arguments.posonlyargs, *arguments.args) if a.arg not in ("self", "cls")]
    plain = len(own)
    padding = [None] * (plain - len(arguments.defaults[-plain:] if plain else []))
    defaults = [*padding, *(arguments.defaults[-plain:] if plain else [])]
    shown = [_argument(one, default) for one, default in zip(own, defaults, strict=True)]
    if arguments.vararg:
        shown.append(f"*{_argument(arguments.vararg, None)}")
    elif arguments.kwonlyargs:
        shown.append("*")
    shown += [_argument(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    if arguments.kwarg:
        shown.append(f"**{_argument(arguments.kwarg, None)}")
    made = node.name == "__init__"
    returns = "" if node.returns is None or made else f" -> {ast.unparse(node.returns)}"
    return _wrap(f"{name}(", shown, f"){returns}")


def _argument(node: ast.arg, default: ast.expr | None) -> str:
    kind = "" if node.annotation is None else f": {ast.unparse(node.annotation)}"
    equals = " = " if kind else "="
    return f"{node.arg}{kind}" + ("" if default is None else f"{equals}{ast.unparse(default)}")


def _wrap(start: str, arguments: list[str], end: str) -> str:
    line = start + ", ".join(arguments) + end
    return line if len(line) <= WIDTH else "\n    ".join([start, *(f"{a}," for a in arguments)]) + f"\n{end}"


def _lineage(public: Public) -> Iterator[Public]:
    """A class and those of its bases that hf_tl defines."""
    yield public
    home = ".".join(public.path.relative_to(ROOT).with_suffix("").parts)
    for base in public.node.bases:
        try:
            found = find(ast.unparse(base), home)
        except (LookupError, FileNotFoundError, AttributeError):  # torch's, scikit-learn's, object
            continue
        if isinstance(found.node, ast.ClassDef):
            yield from _lineage(found)


def _sections(text: str) -> Iterator[tuple[str | None, str]]:
    """(None or the heading, the text) of each part of a docstring."""
    pieces = re.split(rf"^({'|'.join(SECTIONS)}):\n", text, flags=re.MULTILINE)
    yield None, pieces[0]
    for heading, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        inside, after = [], []
        for line in piece.splitlines():
            (after if after or (line and not line.startswith(" ")) else inside).append(line)
        yield heading, textwrap.dedent("\n".join(inside)).strip()
        if after:
            yield None, "\n".join(after)


def _items(body: str) -> list[tuple[str, str]]:
    """(name, description) of the entries of a section; continuation lines are indented."""
    found: list[tuple[str, str]] = []
    for line in body.splitlines():
        if line and not line.startswith(" "):
            name, _, said = line.partition(":")
            found.append((name.strip(), said))
        elif found:
            found[-1] = (found[-1][0], f"{found[-1][1]}\n{line}")
    return found


def _term(name: str, section: str) -> str:
    return ", ".join(f"`{one.strip()}`" for one in name.split(",")) if section != "Raises" else f"`{name}`"


def _join(text: str) -> str:
    return " ".join(text.split())


def _escape(text: str) -> str:
    """Angle brackets outside of code would be read as tags."""
    spans = re.split(r"(`[^`]*`)", text)
    return "".join(s if s.startswith("`") else re.sub(r"<(?=[a-zA-Z/])", r"\\<", s) for s in spans)


def _decorated(node: ast.FunctionDef | ast.ClassDef, *names: str) -> bool:
    return any(name in ast.unparse(decorator) for decorator in node.decorator_list for name in names)


def _target(node: ast.Assign | ast.AnnAssign) -> str:
    return ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


if __name__ == "__main__":
    sys.exit(main())
