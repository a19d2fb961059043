"""The laws of the house: imports in one direction, a floor plan that is true, an import that costs nothing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_tl


ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_tl"
FLOORS = [  # a module imports from floors below its own, or from its own part of the house
    {"errors", "table", "arguments"},
    {"trace", "dataflow"},
    {"layers", "audio", "models", "data", "classifier"},
    {"embedding", "lora", "policies", "probes"},
    {"quickstart"},
    {"cli"},
]
ORDERED = {
    "errors": 0,
    "arguments": 1,
    "dataflow": 0,
    "trace": 1,
    "layers": 0,
    "audio": 0,
    "models": 1,
    "data": 2,
    "classifier": 3,
}  # on their floor: who may use whom


def part(module: str) -> str:
    return module.split(".")[1]


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hf_tl":
            found |= {f"hf_tl.{a.name}" for a in node.names} if node.module == "hf_tl" else {node.module}
            assert node.level == 0, f"{path}: relative import"
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "hf_tl"}
    return found


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_go_down(path):
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    own = part(name_of(path))
    for other in imported(path):
        theirs = part(other)
        if theirs == own:
            continue
        same_floor = floor[own] == floor[theirs] and ORDERED.get(own, 0) > ORDERED.get(theirs, 0)
        assert floor[own] > floor[theirs] or same_floor, f"{own} imports {theirs}"


def test_every_module_stands_on_a_floor():
    assert {part(name_of(path)) for path in modules()} == set().union(*FLOORS)


def test_no_circle_within_a_part():
    edges = {
        name_of(path): {other for other in imported(path) if part(other) == part(name_of(path))} for path in modules()
    }
    while edges:
        free = [name for name, others in edges.items() if not others & set(edges)]
        assert free, f"a circle among {sorted(edges)}"
        for name in free:
            del edges[name]


def test_the_readmes_floor_plan_is_the_folder():
    tree = re.search(r"```\n(hf_tl/\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    planned, folder = set(), ""
    for line in tree.splitlines()[1:]:
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        if name.endswith("/"):
            folder = name
        planned.add(name if indent == 2 else folder + name)
    files = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.parent == PACKAGE or path.name != "__init__.py"
    }
    folders = {
        f"{path.relative_to(PACKAGE)}/" for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    assert planned == files | folders


def test_every_public_name_is_there():
    assert sorted(hf_tl.__all__) == sorted(hf_tl._HOMES)
    for name in hf_tl.__all__:
        assert getattr(hf_tl, name).__doc__
        assert name in dir(hf_tl)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hf_tl.nothing  # noqa: B018


def modules_after(code: str) -> set[str]:
    code += "\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {line.split(".")[0] for line in done.stdout.splitlines()}


HEAVY = {"torch", "transformers", "timm", "sklearn", "datasets", "peft", "accelerate", "evaluate", "matplotlib"}


def test_importing_costs_nothing():
    assert not modules_after("import hf_tl") & HEAVY
    assert not modules_after("from hf_tl.cli.main import build_parser; build_parser()") & HEAVY
    assert "sklearn" in modules_after("from hf_tl import LinearSVM")


def test_reading_a_module_of_ones_own_needs_neither_timm_nor_datasets():
    assert not modules_after("from hf_tl import Network, list_layers, Recipe") & {
        "timm",
        "datasets",
        "sklearn",
        "matplotlib",
    }
