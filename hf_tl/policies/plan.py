"""What a policy does with every layer of a network, phase by phase, and the table and the picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from hf_tl import plots
from hf_tl.architectures import has_running_statistics
from hf_tl.errors import InputError
from hf_tl.layers import Layer, Layers, select_layers
from hf_tl.policies.grammar import SELECTING, Clause
from hf_tl.policies.phases import PhaseStart
from hf_tl.table import as_html, format_table


COLUMNS = 5  # phases that stand beside one another in a table
COLORS = {"frozen": plots.GREY, "tuned": plots.SKY, "reinitialised and tuned": plots.ORANGE}


@dataclass(frozen=True)
class Setting:
    """What is done with a layer.

    Attributes:
        layer: the layer.
        trains: whether its parameters are tuned; frozen otherwise.
        reinit: whether it starts from fresh random values.
        rate: its learning rate in units of the optimizer's.
        norm: "eval" where the statistics of batch norms stand still, "train" where they follow the mode of the model.
        dropout: "off", or "on" where it follows the mode of the model; stochastic depth is meant, too.
        named: whether a clause says that it is frozen or tuned, or whether that follows from its silence.
    """

    layer: Layer
    trains: bool
    reinit: bool = False
    rate: float = 1.0
    norm: str = "train"
    dropout: str = "on"
    named: bool = False


@dataclass(frozen=True)
class Plan:
    """One phase of a policy for one network: a setting for every layer, in the order of the network.

    Attributes:
        start: when the phase begins.
        settings: what is done with each layer.
        trained: parameters that are tuned, by `id`, each with the setting of its layer.
    """

    start: PhaseStart
    settings: tuple[Setting, ...]
    trained: dict[int, Setting] = field(repr=False)

    @property
    def n_trainable(self) -> int:
        """Number of scalars that are tuned."""
        every = [parameter for setting in self.settings for parameter in setting.layer.parameters()]
        return sum(parameter.numel() for parameter in every if id(parameter) in self.trained)

    @property
    def lowest(self) -> Layer | None:
        """The first layer to run that has a parameter which is tuned: backward stops there."""
        return next((setting.layer for setting in self.settings if self.tunes(setting.layer)), None)

    def tunes(self, layer: Layer) -> bool:
        """Whether any parameter of the layer is tuned."""
        return any(id(parameter) in self.trained for parameter in layer.parameters())

    def frozen_prefix(self) -> list[Layer]:
        """The layers before the lowest that is tuned."""
        order = [setting.layer for setting in self.settings]
        return order[: order.index(self.lowest)] if self.lowest is not None else order

    def warnings(self) -> list[str]:
        """What is allowed and costs more than it seems."""
        found = []
        tuned = [i for i, setting in enumerate(self.settings) if self.tunes(setting.layer)]
        between = [setting.layer for setting in self.settings[tuned[0] : tuned[-1]]] if tuned else []
        passed = [layer.name for layer in between if layer.owned and not self.tunes(layer)]
        if passed:
            found.append(
                f"{between[0].name!r} trains below {len(passed)} frozen layers ({passed[0]!r} to {passed[-1]!r}), so "
                f"that backward runs through all of them; freeze it too, 'freeze: stem, ..', unless you mean it"
            )
        moving = [setting.layer for setting in self.settings if not setting.trains and setting.norm == "train"]
        modules = [own for layer in moving for _, module in layer.modules for own in module.modules()]
        if any(map(has_running_statistics, modules)):
            found.append(f"the batch norms of frozen layers keep moving ({moving[0].name!r}); 'norm: eval' stops them")
        return found


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

    def _repr_html_(self) -> str:
        return as_html(str(self))

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


def make_plan(start: PhaseStart, clauses: Sequence[Clause], layers: Layers, *, single: bool = True) -> Plan:
    """The plan that clauses make; later clauses win.

    A layer that no clause freezes or tunes is tuned, unless the clauses say what to tune and nothing of freezing:
    then all others are frozen.

    Args:
        start: when the phase begins.
        clauses: that hold then, in hf_tl's own actions.
        layers: from `list_layers`.
        single: whether there is one phase only, in which whatever is reinitialised trains.

    Raises:
        InputError: a selection that names nothing, or parameters that two layers share and only one of them trains.
    """
    chosen = [(clause, {id(layer) for layer in _selected(clause, layers)}) for clause in clauses]
    actions = {clause.action for clause in clauses}
    by_default = "tune" not in actions or "freeze" in actions
    settings = []
    for layer in layers:
        mine = [clause for clause, members in chosen if id(layer) in members]
        named = [clause.action == "tune" for clause in mine if clause.action in ("freeze", "tune")]
        reinit = any(clause.action == "reinit" for clause in mine)
        trains = named[-1] if named else by_default or (reinit and single)
        words = {clause.action: clause.word for clause in mine if clause.action in ("norm", "dropout")}
        norm = words.get("norm", "train" if trains else "eval")
        dropout = words.get("dropout", "on" if trains else "off")
        settings.append(Setting(layer, trains, reinit, _rate(mine, layer, layers), norm, dropout, bool(named)))
    return Plan(start, tuple(settings), _trained(layers, settings))


def _selected(clause: Clause, layers: Layers) -> Sequence[Layer]:
    if not clause.selection and clause.action not in SELECTING:
        return layers
    return select_layers(layers, clause.text, start=clause.start, stop=clause.stop)


def _rate(clauses: Sequence[Clause], layer: Layer, layers: Layers) -> float:
    rate = 1.0
    for clause in clauses:
        if clause.action == "lr":
            height = _height(layer, layers) if clause.word == "decay" else 1
            try:
                rate *= clause.rate**height
            except OverflowError:
                rate = float("inf")
            if not 0 < rate < float("inf"):
                told = f"'{clause.statement}' gives {layer.name!r} a rate of {rate}"
                raise InputError(f"{told}; write a number nearer to 1")
    return rate


def _height(layer: Layer, layers: Layers) -> int:
    """Blocks from here to the head of the tower, this one included: 0 for norm and head (BEiT, appendix)."""
    n_blocks = sum(other.tower == layer.tower and other.kind == "block" for other in layers)
    if layer.kind == "stem":
        return n_blocks + 1
    return n_blocks - layer.index if layer.index is not None else 0


def _trained(layers: Layers, settings: Sequence[Setting]) -> dict[int, Setting]:
    """The parameters that are tuned; of those that several layers share, a layer that a clause names decides."""
    owners = {id(parameter): setting for setting in settings for parameter in setting.layer.parameters()}
    trained = {own: owners[own] for s in settings if s.trains for own in map(id, tunable(s.layer))}
    for names in layers.tied:
        held = [(setting, _parameters(setting.layer, names)) for setting in settings]
        sharing = [(setting, parameters) for setting, parameters in held if parameters]
        named = [setting for setting, _ in sharing if setting.named]
        _check_tied(names[0], [setting for setting, _ in sharing], named)
        for own in {id(parameter) for _, parameters in sharing if named for parameter in parameters}:
            if named[0].trains:
                trained[own] = owners[own]
            else:
                trained.pop(own, None)
    return trained


def _check_tied(name: str, sharing: Sequence[Setting], named: Sequence[Setting]) -> None:
    kept = next((setting.layer.name for setting in named if not setting.trains), None)
    tuned = next((setting.layer.name for setting in named if setting.trains), None)
    if kept is not None and tuned is not None:
        raise InputError(f"{kept!r} is frozen and {tuned!r} is tuned, but they share {name!r}; freeze or tune both")
    new = next((setting.layer.name for setting in sharing if setting.reinit), None)
    old = next((setting.layer.name for setting in sharing if not setting.reinit), None)
    if new is not None and old is not None:
        raise InputError(f"{new!r} is reinitialised and shares {name!r} with {old!r}; name both or neither")


def _parameters(layer: Layer, names: Sequence[str]) -> list[nn.Parameter]:
    """Those of the named parameters that are in the modules of a layer."""
    return [
        parameter
        for prefix, module in layer.modules
        for name, parameter in module.named_parameters(prefix, remove_duplicate=False)
        if name in names
    ]


def tunable(layer: Layer) -> list[nn.Parameter]:
    """The parameters of a layer that may be tuned: those that require gradients, or all if none does.

    What does not among others that do is a constant of the network, such as the fixed position embeddings of Whisper
    and ViT-MAE; where nothing does, somebody froze the layer. Quantised weights are no constants.
    """
    own = layer.parameters()
    if not any(parameter.requires_grad for parameter in own):
        return own
    return [parameter for parameter in own if parameter.requires_grad or not parameter.is_floating_point()]
