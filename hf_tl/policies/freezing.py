"""Parts of a network that stay in eval mode, however often somebody calls `model.train()`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from hf_tl.layers import Layer
from hf_tl.names import is_inside
from hf_tl.policies.plan import Plan, has_statistics
from hf_tl.trace import Batch, trace


class EvalGuard:
    """Sets the modes of modules as a network begins its forward pass, after whatever `train()` did to them.

    A hook on the whole network, because dropout is often a function that reads the mode of the module around it, and
    because Trainer calls `model.train()` within each step, after the last hook of a callback.
    """

    def __init__(self, model: nn.Module):
        self.still: list[nn.Module] = []
        self.handle: RemovableHandle = model.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, args: Any) -> None:
        """As the network begins."""
        for inner in self.still:
            inner.training = False

    def remove(self) -> None:
        """Takes the hook away."""
        self.handle.remove()


def still_modules(model: nn.Module, plan: Plan, strays: Mapping[Layer, Sequence[nn.Module]]) -> list[nn.Module]:
    """The modules that a plan keeps in eval mode.

    With the modules of frozen layers go those around them that hold no other parameters (an encoder whose layers all
    are frozen, for the sake of layer drop), and the parameterless ones that run right after them.
    """
    norms, others = {}, {}
    for setting in plan.settings:
        roots = [module for _, module in setting.layer.modules]
        for inner in [inner for root in (*roots, *strays.get(setting.layer, ())) for inner in root.modules()]:
            if has_statistics(inner):
                norms[inner] = setting.norm == "eval"
            else:
                others[inner] = setting.dropout == "off"
    chosen = [module for module, still in (*norms.items(), *others.items()) if still]
    quiet = {id(p) for s in plan.settings if s.dropout == "off" for p in s.layer.parameters()}
    around = [
        module
        for module in model.modules()
        if module not in norms and module not in others and _holds_only(module, quiet)
    ]
    return chosen + around


def _holds_only(module: nn.Module, quiet: set[int]) -> bool:
    held = [id(parameter) for parameter in module.parameters()]
    return bool(held) and all(own in quiet for own in held)


def stray_modules(model: nn.Module, layers: Sequence[Layer], example: Batch) -> dict[Layer, list[nn.Module]]:
    """Modules without parameters that run outside all layers (a dropout between two), by the layer before them."""
    homes = {name: layer for layer in layers for name, _ in layer.modules}
    modules = dict(model.named_modules())
    before, found = layers[0], {}
    for name in trace(model, example).modules:
        home = next((homes[own] for own in homes if is_inside(name, [own])), None)
        if home is not None:
            before = home
        elif next(modules[name].parameters(), None) is None:
            found.setdefault(before, []).append(modules[name])
    return found
