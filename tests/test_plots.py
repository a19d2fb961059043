"""Pictures: what is drawn stands in the file; matplotlib is imported to draw alone."""

import subprocess
import sys

import pytest

from hf_tl import InputError, plots


def texts_of(path):
    return path.read_text().replace("&gt;", ">")


def test_bars_have_names_and_texts(tmp_path):
    with plots.picture(tmp_path / "bars.svg", title="parameters of all", size=(4, 2)) as (panel,):
        plots.bars(panel, ["stem", "head"], [2000, 10], texts=["2k", "10"], colors=[plots.BLUE, plots.ORANGE])
        plots.ticks(panel, [1, 2], label="least")
        plots.axes(panel, x="parameters", shortened=True)
        plots.legend(panel, {"frozen": plots.GREY})
    drawn = texts_of(tmp_path / "bars.svg")
    for text in ("parameters of all", "stem", "head", "2k", "least", "frozen", "1k"):
        assert f"<!-- {text} -->" in drawn
    assert plots.BLUE.lower() in drawn
    assert plots.ORANGE.lower() in drawn


@pytest.mark.parametrize(("first", "ascending"), [("bottom", True), ("top", False)])
def test_bars_begin_where_they_should(tmp_path, first, ascending):
    with plots.picture(tmp_path / "bars.png", title="") as (panel,):
        plots.bars(panel, [], [1, 2], first=first)
        low, high = panel.get_ylim()
    assert bool(low < high) is ascending


def test_curves_bands_and_levels(tmp_path):
    with plots.picture(tmp_path / "curves.svg", title="two", n_panels=2, caption="95 % intervals") as (left, right):
        plots.curve(left, [1, 10], [0.2, 0.9], color=plots.BLUE, label="svm", errors=[0.1, 0.1])
        plots.band(left, [1, 10], [0.1, 0.8], [0.3, 1.0], color=plots.BLUE)
        plots.level(left, 0.1, label="chance", interval=(0.05, 0.15))
        plots.axes(left, x="samples", y="accuracy", x_at=[1, 10], log="x", between=(0, 1))
        plots.legend(left)
        plots.curve(right, [1, 2], [1, 0.01], color=plots.BLUE)
        plots.axes(right, x="direction", log="y", whole=True)
    drawn = texts_of(tmp_path / "curves.svg")
    for text in ("two", "95 % intervals", "svm", "chance", "samples", "accuracy", "10", "direction"):
        assert f"<!-- {text} -->" in drawn


def test_a_grid_has_a_cell_for_each_row_and_column(tmp_path):
    with plots.picture(tmp_path / "grid.svg", title="rates") as (panel,):
        plots.grid(panel, [["red", "green"]], [["", "0.1"]], rows=["stem"], columns=["from 0", "from 5"])
        assert len(panel.patches) == 2
    assert "<!-- from 5 -->" in texts_of(tmp_path / "grid.svg")


def test_a_picture_of_another_kind_is_refused_before_anything_is_drawn(tmp_path):
    with (
        pytest.raises(InputError, match=r"a picture should be a .png, .svg or .pdf file, got 'x.gif'"),
        plots.picture("x.gif", title=""),
    ):
        raise AssertionError


def test_counts_in_short():
    assert [plots.in_short(count) for count in (0, 999, 1234, 1234567, 2.5e9)] == [
        "0",
        "999",
        "1.23k",
        "1.23M",
        "2.5G",
    ]
    assert plots.shades(2) == ["#440154", "#fde725"]
    assert len(plots.shades(1)) == 1


def test_matplotlib_is_imported_to_draw_alone():
    subprocess.run(
        [sys.executable, "-c", "import sys, hf_tl.plots; assert 'matplotlib' not in sys.modules"], check=True
    )
