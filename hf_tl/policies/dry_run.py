"""What a policy would do to a network: a grid of layers and phases, in words and as a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_tl.errors import InputError
from hf_tl.layers import Layers
from hf_tl.policies.plan import Plan
from hf_tl.table import format_table


COLUMNS = 5  # phases that stand beside one another in a table
FROZEN, TUNED, FRESH = "#C8CDD2", "#56B4E9", "#D55E00"


@dataclass(frozen=True)
class DryRun:
    """What a policy would do; `str` of it is a table, the data on top, the task below.

    Attributes:
        layers: the layers of the network.
        phases: when each phase begins.
        plans: one for each phase.
        lr: the optimizer's learning rate, without its schedule.
    """

    layers: Layers
    phases: tuple[str, ...]
    plans: tuple[Plan, ...]
    lr: float

    @property
    def warnings(self) -> list[str]:
        """What is allowed and costs more than it seems, each once."""
        return list(dict.fromkeys(warning for plan in self.plans for warning in plan.warnings()))

    def __str__(self) -> str:
        wide = len(self.phases) > COLUMNS
        rows: list[list[object]] = []
        for number, layer in enumerate(self.layers):
            cells = [self._cell(plan, number) for plan in self.plans]
            place = layer.kind if layer.index is None else str(layer.index)
            rows.append([place, layer.name, layer.n_parameters, *([self._in_words(cells)] if wide else cells)])
        total = self.layers.n_parameters
        columns = ["phase by phase"] if wide else [f"from {when}" for when in self.phases]
        header = ["layer", "name", "parameters", *columns]
        lines = [format_table(header, rows)]
        for when, plan in zip(self.phases, self.plans, strict=True):
            count, lowest = plan.n_trainable, plan.lowest
            where = f", backward stops at {lowest.name!r}" if lowest is not None else ""
            lines.append(f"from {when}: {count:,} of {total:,} parameters train ({count / total:.1%}){where}")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    def _cell(self, plan: Plan, number: int) -> str:
        setting = plan.settings[number]
        if not plan.tunes(setting.layer):
            return "freeze" if setting.layer.owned else "-"
        return f"{'reinit' if setting.reinit else 'tune'} {self.lr * setting.rate:.3g}"

    def _in_words(self, cells: Sequence[str]) -> str:
        """What happens to one layer, where there are too many phases for a column each: only the changes."""
        changes = [i for i in range(len(cells)) if i == 0 or cells[i] != cells[i - 1]]
        return ", ".join(f"from {self.phases[i]} {cells[i]}" if i else cells[i] for i in changes)

    def draw(self, path: str | Path, *, title: str = "") -> None:
        """Draws the grid into a PNG, SVG or PDF file: a row for each layer, a column for each phase.

        Raises:
            InputError: a file name that ends otherwise.
        """
        if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
            raise InputError(f"a picture should be a .png, .svg or .pdf file, got {str(path)!r}")
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch, Rectangle

        n_layers, n_phases = len(self.layers), len(self.phases)
        names = [layer.name for layer in self.layers]
        width = max(2.2 + 0.075 * max(map(len, names)) + 0.85 * n_phases, 5.5)  # inches
        figure = Figure(figsize=(width, 1.5 + 0.27 * n_layers), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        used = set()
        for column, plan in enumerate(self.plans):
            for row, setting in enumerate(plan.settings):
                tuned = plan.tunes(setting.layer)
                colour = (FRESH if setting.reinit else TUNED) if tuned else FROZEN
                used.add(colour)
                axes.add_patch(Rectangle((column, row), 0.96, 0.9, color=colour, linewidth=0))
                text = f"{self.lr * setting.rate:.2g}" if tuned else ""
                axes.text(column + 0.48, row + 0.45, text, ha="center", va="center", fontsize=8)
        axes.set_xlim(0, n_phases)
        axes.set_ylim(0, n_layers)
        axes.set_xticks([i + 0.48 for i in range(n_phases)], [f"from {when}" for when in self.phases], fontsize=8)
        axes.set_yticks([i + 0.45 for i in range(n_layers)], names, fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        title = title or "learning rate of each layer, from data (below) to task (above)"
        figure.suptitle(textwrap.fill(title, int(11 * width)), fontsize=10)
        drawn = {FROZEN: "frozen", TUNED: "tuned", FRESH: "reinitialised and tuned"}
        handles = [Patch(color=colour, label=label) for colour, label in drawn.items() if colour in used]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        figure.savefig(path, dpi=150)
