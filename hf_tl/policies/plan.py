"""What a policy says about every layer of a network in one of its phases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from hf_tl.errors import InputError
from hf_tl.layers import Layer, Layers
from hf_tl.names import is_inside
from hf_tl.policies.grammar import Clause


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

    def __str__(self) -> str:
        if not self.trains:
            return "freeze"
        return f"{'reinit' if self.reinit else 'tune'} x{self.rate:.3g}"


@dataclass(frozen=True)
class Plan:
    """One phase of a policy for one network: a setting for every layer, in the order of the network.

    Attributes:
        settings: what is done with each layer.
        trained: parameters that are tuned, by `id`, each with the setting of its layer.
    """

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
        told = []
        frozen = [setting.layer for setting in self.settings if setting.layer.owned and not self.tunes(setting.layer)]
        order = [setting.layer for setting in self.settings]
        if self.lowest is not None:
            above = [layer for layer in frozen if order.index(layer) > order.index(self.lowest)]
            top = any(self.tunes(layer) for layer in order[order.index(above[-1]) :]) if above else False
            if above and top:
                told.append(
                    f"{self.lowest.name!r} trains below {len(above)} frozen layers ({above[0].name!r} to "
                    f"{above[-1].name!r}), so that backward runs through all of them; freeze it too, "
                    f"'freeze: stem, ..', unless you mean it"
                )
        moving = [setting.layer.name for setting in self.settings if not setting.trains and setting.norm == "train"]
        if moving and any(_has_statistics(setting.layer) for setting in self.settings if setting.layer.name in moving):
            told.append(f"the batch norms of frozen layers keep moving ({moving[0]!r}); 'norm: eval' stops them")
        return told


def make_plan(layers: Layers, clauses: Sequence[Clause], *, alone: bool = True) -> Plan:
    """The plan that clauses make; later clauses win.

    A layer that no clause freezes or tunes is tuned, unless the clauses say what to tune and nothing of freezing:
    then all others are frozen.

    Args:
        layers: from `list_layers`.
        clauses: from `parse_policy`, `expanded`.
        alone: whether there is one phase only, in which whatever is reinitialised trains.

    Raises:
        InputError: a selection that names nothing, or parameters that two layers share and only one of them trains.
    """
    chosen = [(clause, {id(layer) for layer in clause.layers(layers)}) for clause in clauses]
    verbs = {clause.verb for clause in clauses}
    silent = not ("tune" in verbs and "freeze" not in verbs)
    settings = tuple(_setting(layer, layers, chosen, silent, alone) for layer in layers)
    return Plan(settings, _trained(layers, settings))


def _setting(layer: Layer, layers: Layers, chosen: list, silent: bool, alone: bool) -> Setting:
    mine = [clause for clause, members in chosen if id(layer) in members]
    actions = [clause.verb for clause in mine if clause.verb in ("freeze", "tune")]
    reinit = any(clause.verb == "reinit" for clause in mine)
    trains = actions[-1] == "tune" if actions else silent or (reinit and alone)
    rate = 1.0
    for clause in mine:
        if clause.verb == "lr":
            rate *= clause.rate ** _height(layer, layers) if clause.word == "decay" else clause.rate
    words = {clause.verb: clause.word for clause in mine if clause.verb in ("norm", "dropout")}
    norm = words.get("norm", "train" if trains else "eval")
    dropout = words.get("dropout", "on" if trains else "off")
    return Setting(layer, trains, reinit, rate, norm, dropout, bool(actions))


def _height(layer: Layer, layers: Layers) -> int:
    """Blocks from here to the head of the tower, this one included: 0 for norm and head (BEiT, appendix)."""
    blocks = [other for other in layers if other.tower == layer.tower and other.kind == "block"]
    if layer.kind == "stem":
        return len(blocks) + 1
    return len(blocks) - layer.index if layer.kind == "block" else 0


def _trained(layers: Layers, settings: Sequence[Setting]) -> dict[int, Setting]:
    trained = {
        id(parameter): setting for setting in settings if setting.trains for parameter in tunable(setting.layer)
    }
    for names in layers.tied:
        sharing = [setting for setting in settings if _holds(setting.layer, names)]
        named = [setting for setting in sharing if setting.named]
        verdicts = {setting.trains for setting in named}
        if len(verdicts) > 1:
            kept, tuned = (next(s for s in named if s.trains is trains).layer.name for trains in (False, True))
            raise InputError(
                f"{kept!r} is frozen and {tuned!r} is tuned, but they share {names[0]!r}; freeze or tune both"
            )
        fresh = {setting.reinit for setting in sharing}
        if len(fresh) > 1:
            new, old = (next(s for s in sharing if s.reinit is reinit).layer.name for reinit in (True, False))
            raise InputError(f"{new!r} is reinitialised and shares {names[0]!r} with {old!r}; name both or neither")
        for setting in sharing:
            for parameter in setting.layer.parameters():
                if named and _is_one_of(parameter, setting.layer, names):
                    trained.pop(id(parameter), None)
                    if verdicts == {True}:
                        trained[id(parameter)] = setting
    return trained


def tunable(layer: Layer) -> list[nn.Parameter]:
    """The parameters of a layer that may be tuned: those that require gradients, or all if none does.

    What does not among others that do is a constant of the network, such as the fixed position embeddings of Whisper
    and ViT-MAE; where nothing does, somebody froze the layer. Quantised weights are no constants.
    """
    free = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    if not free:
        return layer.parameters()
    return [
        parameter for parameter in layer.parameters() if parameter.requires_grad or not parameter.is_floating_point()
    ]


def _holds(layer: Layer, names: Sequence[str]) -> bool:
    return any(is_inside(name, [own]) for own, _ in layer.modules for name in names)


def _is_one_of(parameter: nn.Parameter, layer: Layer, names: Sequence[str]) -> bool:
    for own, module in layer.modules:
        for name in names:
            if is_inside(name, [own]) and module.get_parameter(name[len(own) + 1 :]) is parameter:
                return True
    return False


def _has_statistics(layer: Layer) -> bool:
    return any(has_statistics(inner) for _, module in layer.modules for inner in module.modules())


def has_statistics(module: nn.Module) -> bool:
    """True for a norm that keeps running statistics."""
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
