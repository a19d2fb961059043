"""The structure: imports in one direction, a documented tree that is the folder, an import that costs nothing."""

import ast
import functools
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from architecture_tree import document

import hf_tl


ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_tl"
LEVELS = [  # a module imports from levels above its own in this list, or from its own part
    {"errors", "table", "dataflow", "intervals"},
    {"files"},
    {"architectures", "names", "plots", "hub", "plugins", "arguments"},
    {"trace", "card", "labels"},
    {"example", "acceleration"},
    {"layers"},
    {"inputs"},
    {"preparation", "dataset_check", "audio_folder", "containers", "input_column"},
    {"models"},
    {"checkpoint"},
    {"data"},
    {"training"},
    {"embedding", "lora", "policies"},
    {"probes"},
    {"classifier"},
    {"analysis"},
    {"strategies"},
    {"cluster"},
    {"quickstart"},
    {"cli"},
]


def part(module: str) -> str:
    return module.split(".")[1]


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def is_for_types(node: ast.stmt) -> bool:
    """What only type checkers read."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported(path: Path, *, run: bool = False) -> set[str]:
    """What a file imports from hf_tl; with `run`, without what only type checkers import."""
    found = set()
    body = [node for node in parsed(path).body if not (run and is_for_types(node))]
    for node in chain.from_iterable(map(ast.walk, body)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hf_tl":
            found |= (
                {f"hf_tl.{a.name}" for a in node.names if a.name != "__version__"}
                if node.module == "hf_tl"
                else {node.module}
            )
            assert node.level == 0, f"{path}: relative import"
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "hf_tl"}
    return found


def test_imports_go_down():
    level = {name: i for i, names in enumerate(LEVELS) for name in names}
    for path in modules():
        own = part(name_of(path))
        assert own in level, f"{own} has no level"
        for other in imported(path):
            theirs = part(other)
            assert theirs == own or level[own] > level[theirs], f"{name_of(path)} imports {other}"


def test_no_circle_within_a_part():
    edges = {
        name_of(path): {other for other in imported(path, run=True) if part(other) == part(name_of(path))}
        for path in modules()
    }
    while edges:
        free = [name for name, others in edges.items() if not others & set(edges)]
        assert free, f"a circle among {sorted(edges)}"
        for name in free:
            del edges[name]


def test_no_two_wings_have_a_file_of_one_name():
    """The commands are named after what they call."""
    names = [path.name for path in modules() if part(name_of(path)) != "cli" and path.name != "__init__.py"]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)


def test_the_documented_tree_is_the_folder():
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert page == document(page), "run: python docs/architecture_tree.py"


def test_the_documented_direction_is_that_of_the_levels():
    page = (ROOT / "docs" / "architecture.md").read_text()
    sentence = page.partition("Imports go one way:")[2].partition(".\n")[0]
    assert [set(re.findall(r"`(\w+)`", level)) for level in sentence.split("->")] == LEVELS[::-1]


def test_every_public_name_is_there():
    for name in hf_tl.__all__:
        assert getattr(hf_tl, name).__doc__
        assert name in dir(hf_tl)
    with pytest.raises(AttributeError, match="No hf_tl attribute nothing"):
        hf_tl.nothing  # noqa: B018


HEAVY = {"torch", "transformers", "timm", "sklearn", "datasets", "peft", "accelerate", "evaluate", "matplotlib"}
STEPS = {  # what a process does, one after the other -> what it has not imported by then
    "import hf_tl": HEAVY,
    "from hf_tl.cli.main import build_parser; build_parser()": HEAVY,
    "import torch; from hf_tl import architectures as a; m = torch.nn.Linear(2, 2)": HEAVY - {"torch"},
    "a.is_transformers(m), a.is_timm(m), a.is_conv1d(m), a.is_checkpointed(m)": HEAVY - {"torch"},
    "from hf_tl import Network, list_layers, Recipe": {"timm", "datasets", "sklearn", "matplotlib"},
    "from hf_tl import LinearSVM": {"datasets"},
}


def test_what_a_full_disk_refuses_is_said_by_one_file():
    """hf_tl/files.py makes all folders and files, and says in a sentence where a disk does not take one."""
    for path in modules():
        calls = [node.func for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
        names = {func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "") for func in calls}
        unsaid = names & {"mkdir", "write_text", "write_bytes", "save_file"}
        assert not unsaid or path.name == "files.py", f"{name_of(path)} calls {unsaid}"


@pytest.mark.slow
def test_importing_costs_nothing():
    code = "import sys\n" + "".join(f"{step}\nprint(*sys.modules)\n" for step in STEPS)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = [{name.split(".")[0] for name in line.split()} for line in done.stdout.splitlines()]
    for (step, absent), there in zip(STEPS.items(), after, strict=True):
        assert not there & absent, step
    assert "sklearn" in after[-1]  # else nothing is looked at
