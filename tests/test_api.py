"""docs/api.md is what the docstrings say, and the docstrings say what every argument is."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import hf_tl


ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))
api = import_module("api")
PUBLIC = {public.name: public for public in api.public_names()}


def test_the_page_is_not_stale():
    assert api.PAGE.read_text() == api.render(), "write it again: python docs/api.py"


def test_the_check_says_so():
    done = subprocess.run([sys.executable, str(ROOT / "docs" / "api.py"), "--check"], capture_output=True)
    assert done.returncode == 0
    assert not done.stdout


def test_every_public_name_has_its_place():
    headings = [line.removeprefix("### ") for line in api.PAGE.read_text().splitlines() if line.startswith("### ")]
    assert sorted(headings) == sorted(hf_tl.__all__)
    for public in PUBLIC.values():
        assert public.path.is_relative_to(ROOT / "hf_tl")
    assert "## More" not in api.PAGE.read_text(), "name the chapter of new parts in docs/api.py"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_is_described(name):
    """Functions, constructors and dataclasses under Args or Attributes; methods have a docstring of their own."""
    public = PUBLIC[name]
    said = api.described(public.text)
    assert public.text, name
    assert not {field.target.id for field in api.fields(public) if "init=False" not in api.ast.unparse(field)} - said
    for called, node, text in api.callables(public):
        assert text, called
        if called == name:
            assert not set(api.parameters(node)) - said, called


def test_a_docstring_as_markdown():
    text = """A sum, `a + <b>` in a <tag>.

        y = a + b

Args:
    a: the first, (rows, n)
        and its shape.
    b, c: the others.

Returns:
    (rows,) the
    sums.

Raises:
    InputError: no rows.
"""
    assert api.to_markdown(text).splitlines() == [
        "A sum, `a + <b>` in a \\<tag>.",
        "",
        "        y = a + b",
        "",
        "*Args*",
        "",
        "- `a`: the first, (rows, n) and its shape.",
        "- `b`, `c`: the others.",
        "",
        "*Returns*: (rows,) the sums.",
        "",
        "*Raises*",
        "",
        "- `InputError`: no rows.",
    ]


def test_a_signature_is_written_out():
    public = PUBLIC["merge_lora"]
    wanted = ["merge_lora(", "    model: nn.Module,", "    *,", "    adapters: Sequence[str] | None = None,"]
    assert api._signature(public).splitlines()[:4] == wanted
    assert api._signature(PUBLIC["KernelSVM"]) == "KernelSVM(C: float = 1.0, *, gamma: float | None = None)"
    assert api._signature(PUBLIC["InputError"]) == "class InputError(ValueError)"
