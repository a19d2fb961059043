"""Phases that are written out for the layers of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hf_tl.errors import InputError
from hf_tl.layers import Layers
from hf_tl.policies.phases import At


Schedule = Callable[[Layers], Sequence[At]]


@dataclass(frozen=True)
class Gradual:
    """The phases of gradual unfreezing; in a network of several towers, the last to run is unfrozen first."""

    every: int
    unit: str
    blocks: int

    def __call__(self, layers: Layers) -> list[At]:
        """The phases for a network."""
        open_ = [kind for kind in ("norm", "head") if any(layer.kind == kind for layer in layers)]
        steps = []
        done: list[str] = []
        for tower in reversed(layers.towers or ("",)):
            count = sum(layer.kind == "block" and layer.tower == tower for layer in layers)
            prefix = f"{tower}." if tower else ""
            steps += [", ".join([f"{prefix}-{k}..", *done, *open_]) for k in range(self.blocks, count, self.blocks)]
            if count:
                done.append(f"{prefix}0..")
                steps.append(", ".join([*done, *open_]))
        steps.append("all")
        starts = [", ".join(open_)] if "head" in open_ else []
        texts = [f"tune: {step}" for step in (*starts, *steps)]
        return [At(self._when(i * self.every), text) for i, text in enumerate(texts)]

    def _when(self, amount: int) -> str:
        return f"{amount} {self.unit}{'s' * (amount > 1)}" if amount else "0"


@dataclass(frozen=True)
class TopK:
    """One phase, in which the last `k` blocks and what follows them train."""

    k: int

    def __call__(self, layers: Layers) -> list[At]:
        """The phase for a network.

        Raises:
            InputError: a network of several towers, or of fewer blocks.
        """
        if len(layers.towers) > 1:
            raise InputError(
                f"top_k is for one tower, and the network has {', '.join(layers.towers)}; "
                f"write 'tune: {layers.towers[-1]}.-{self.k}..'"
            )
        count = sum(layer.kind == "block" for layer in layers)
        if self.k > count:
            raise InputError(f"k should be at most {count}, the number of blocks, got {self.k}")
        after = [kind for kind in ("norm", "head") if any(layer.kind == kind for layer in layers)]
        return [At("0", f"tune: {', '.join([f'-{self.k}..'] * bool(self.k) + after)}")]
