"""What a policy would do to a network: a grid of layers and phases, in words and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_tl import plots
from hf_tl.layers import Layers
from hf_tl.policies.plan import Plan
from hf_tl.table import format_table


COLUMNS = 5  # phases that stand beside one another in a table
COLORS = {"frozen": plots.GREY, "tuned": plots.SKY, "reinitialised and tuned": plots.ORANGE}


@dataclass(frozen=True)
class DryRun:
    """What a policy would do; `str` of it is a table, the data on top, the task below.

    Attributes:
        layers: the layers of the network.
        plans: one for each phase.
        lr: the optimizer's learning rate, without its schedule.
    """

    layers: Layers
    plans: tuple[Plan, ...]
    lr: float

    @property
    def phases(self) -> list[str]:
        """When each phase begins."""
        return [plan.start.when for plan in self.plans]

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

    def plot(self, path: str | Path, *, title: str = "") -> None:
        """Draws the grid into a PNG, SVG or PDF file: a row for each layer, a column for each phase.

        Raises:
            InputError: a file name that ends otherwise.
        """
        names = [layer.name for layer in self.layers]
        width = max(2.2 + 0.075 * max(map(len, names)) + 0.85 * len(self.phases), 5.5)  # inches
        states = [[self._state(plan, number) for plan in self.plans] for number in range(len(names))]
        title = title or "learning rate of each layer, from data (below) to task (above)"
        with plots.picture(path, title=title, size=(width, 1.5 + 0.27 * len(names))) as (panel,):
            plots.grid(
                panel,
                [[COLORS[state] for state, _ in row] for row in states],
                [[text for _, text in row] for row in states],
                rows=names,
                columns=[f"from {when}" for when in self.phases],
            )
            used = {state for row in states for state, _ in row}
            plots.legend(panel, {state: color for state, color in COLORS.items() if state in used})

    def _state(self, plan: Plan, number: int) -> tuple[str, str]:
        """A key of COLORS, and the learning rate."""
        setting = plan.settings[number]
        if not plan.tunes(setting.layer):
            return "frozen", ""
        return "reinitialised and tuned" if setting.reinit else "tuned", f"{self.lr * setting.rate:.2g}"
