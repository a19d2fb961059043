"""What kind of module one is, and how much of a network it is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from hf_tl.trace import is_convolution, is_fully_connected


@runtime_checkable
class TransformersNetwork(Protocol):
    """What transformers' networks have in common."""

    @property
    def base_model(self) -> nn.Module:
        """The network without its head; itself if it has none."""


@runtime_checkable
class TimmNetwork(Protocol):
    """What timm's networks have in common."""

    def get_classifier(self) -> nn.Module:
        """The classifier."""

    def group_matcher(self, coarse: bool = False) -> object:
        """How its parameters group into layers: regular expressions, or a function of the name."""


def is_norm(module: nn.Module) -> bool:
    """True for a normalisation by itself, known by its class name, as there is no common base class."""
    return "norm" in type(module).__name__.lower() and not any(n_parameters(child) for child in module.children())


def is_linear(module: nn.Module) -> bool:
    """True for a convolution or a fully connected layer."""
    return is_convolution(module) or is_fully_connected(module)


def n_linear(module: nn.Module) -> int:
    """Number of convolutions and fully connected layers in it, itself included."""
    return sum(is_linear(inner) for inner in module.modules())


def n_parameters(module: nn.Module) -> int:
    """Number of scalars in its parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
