"""The notebook runs from top to bottom, without IPython; what its cells end with is shown."""

import ast
import json
from pathlib import Path

import pytest
from conftest import write_images


NOTEBOOK = Path(__file__).parent.parent / "docs" / "journey.ipynb"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a small network, photos and new ones, under the names that the notebook says."""
    import timm

    monkeypatch.chdir(tmp_path)
    model, settings = timm.create_model("mobilenetv2_035", num_classes=2), {"input_size": (3, 32, 32)}
    timm.models.save_for_hf(model, "timm/mobilenetv2_100.ra_in1k", model_config=settings, safe_serialization=True)
    write_images(tmp_path / "beans")
    write_images(tmp_path / "beans", rows=3, split="test")
    write_images(tmp_path / "new-photos", rows=2)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(place, capsys):
    names, shown = {"__name__": "__main__"}, []
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    for number, cell in enumerate(cells):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
            shown += [] if value is None else [value._repr_html_()]
    assert len(shown) == 7
    assert all(html.startswith("<pre") and len(html) < 10_000 for html in shown)
    assert len(capsys.readouterr().out.splitlines()) == 1 + 4  # the first cell says a line, each new photo has one
