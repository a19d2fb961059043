"""Every public name has a docstring that says what each of its arguments is."""

import dataclasses
import inspect
import re

import pytest

import hf_tl


def described(doc: str) -> set[str]:
    """The names below "Args:" and "Attributes:"."""
    sections = re.findall(r"^(?:Args|Attributes):\n((?:(?: .*)?\n)*)", doc + "\n", re.MULTILINE)
    entries = re.findall(r"^ {4}(\w[\w, *]*):", "\n".join(sections), re.MULTILINE)
    return {name.strip(" *") for entry in entries for name in entry.split(",")}


def arguments(function) -> set[str]:
    return {name for name in inspect.signature(function).parameters if name not in ("self", "cls")}


def methods(kind: type):
    """The public ones that it defines itself."""
    for name, member in vars(kind).items():
        if not name.startswith("_") and isinstance(member, staticmethod | classmethod | property | type(methods)):
            yield name, member


@pytest.mark.parametrize("name", hf_tl.__all__)
def test_every_argument_is_described(name):
    public = getattr(hf_tl, name)
    doc = inspect.getdoc(public)
    assert doc
    if isinstance(public, type):
        for method, member in methods(public):
            assert inspect.getdoc(getattr(public, method)) or member.__doc__, f"{name}.{method}"
        if dataclasses.is_dataclass(public):  # whose fields are described where they are added
            doc = "\n\n".join(inspect.cleandoc(kind.__doc__ or "") for kind in public.__mro__)
            expected = {field.name for field in dataclasses.fields(public) if field.init}
        elif "__init__" in vars(public):
            expected = arguments(public.__init__)
        else:
            expected = set()
    elif callable(public):
        expected = arguments(public)
    else:
        return
    assert not expected - described(doc), name
