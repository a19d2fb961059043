"""Adapters beside a parameter that no layer of its own holds, such as the stacked experts of a mixture.

PEFT calls them target_parameters. A matrix (d, k) is adapted as a linear layer's weight is; of a stack (E, d, k), or
(E, k, d) where the module says is_transposed, every expert e has factors A_e (r, k) and B_e (d, r) of its own, held as
PEFT holds them: A (E r, k) with the experts one below the other, B (d, r E) with the E columns of each rank together.

Several parameters of one module are adapted by layers one inside the other, the first of its parameters innermost.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hf_tl.errors import InputError
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.layer import LoraLayer
from hf_tl.lora.quantised import plain_weight


class LoraParameter(LoraLayer):
    """Adapters beside a parameter of two or three axes; the module runs on `W_e + scaling * B_e A_e`.

    Attributes:
        weight_name: the parameter's name in its module.
    """

    calls_layer = False

    def __init__(self, base_layer: nn.Module, parameter: str):
        super().__init__(base_layer)
        self.weight_name = parameter

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returns with its parameter adapted."""
        self.called.add(self.training)
        running = self.running
        if not any(adapter in self.r for adapter in running):
            return self.base_layer(*args, **kwargs)
        weights = {f"{self.path}{self.weight_name}": self.adapted_weight(running)}
        return torch.func.functional_call(self.base_layer, weights, args, kwargs)

    @property
    def holder(self) -> nn.Module:
        """See LoraLayer: the module inside all layers of its parameters."""
        inner: nn.Module = self.base_layer
        while isinstance(inner, LoraParameter):
            inner = inner.base_layer
        return inner

    @property
    def path(self) -> str:
        """See LoraLayer."""
        return f"base_layer.{self.base_layer.path}" if isinstance(self.base_layer, LoraParameter) else ""

    @property
    def weight(self) -> Tensor:
        """What a network finds that reads `weight` of the module by itself."""
        return getattr(self.holder, "weight")  # noqa: B009  # the module's own, and not the parameter's

    def adapted_weight(self, adapters: Any) -> Tensor:
        """See LoraLayer."""
        weight: Tensor = self.frozen_weight
        with torch.autocast(weight.device.type, enabled=False):
            for adapter in adapters:
                left, right = (factor.to(weight.dtype) for factor in self.stacked(adapter))
                stack = weight if weight.dim() == 3 else weight[None]
                weight = torch.baddbmm(stack, left, right, alpha=self.scaling[adapter]).view(weight.shape)
        return weight

    def stacked(self, adapter: str) -> tuple[Tensor, Tensor]:
        """The factors of every expert in the parameter's own layout: (E, d, r), (E, r, k); or (E, k, r), (E, r, d)."""
        a, b = self.factors(adapter)
        a = a.view(self.experts, -1, a.shape[1])
        b = b.view(b.shape[0], -1, self.experts).permute(2, 0, 1)
        return (a.transpose(1, 2), b.transpose(1, 2)) if self.is_transposed else (b, a)

    @property
    def experts(self) -> int:
        """How many matrices are stacked; 1 for a parameter of two axes."""
        return n_experts(self.frozen_weight)

    @property
    def is_transposed(self) -> bool:
        """Whether the matrices of the stack are (k, d)."""
        return self.frozen_weight.dim() == 3 and is_transposed(self.holder)

    def matrix(self) -> Tensor:
        """The parameter in its own layout, experts one below the other: a view."""
        return plain_weight(self.holder, self.weight_name).flatten(0, -2)

    def add_to(self, matrix: Tensor, bias: Tensor | None, adapter: str) -> None:
        """See LoraLayer; the matrix is in the parameter's own layout."""
        with torch.no_grad():
            left, right = (factor.to(matrix.dtype) for factor in self.stacked(adapter))
            matrix.view(self.experts, -1, matrix.shape[1]).baddbmm_(left, right, alpha=self.scaling[adapter])

    def factor_matrices(self, adapter: str) -> tuple[Tensor, Tensor]:
        """See LoraLayer.

        Raises:
            InputError: always: every expert has factors of its own.
        """
        raise InputError(
            f"the adapter of {self.weight_name!r} holds factors for each expert and is no update of one matrix; merge "
            "it, or leave target_parameters out of adapters that are combined or compared"
        )

    def own_bias(self) -> None:
        """None: biases of the module are parameters of their own."""

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See LoraLayer."""
        return stacked_shapes(self.holder, self.weight_name, rank)

    def refuse(self, config: LoraConfig) -> None:
        """See LoraLayer."""
        reason = config.unfit_for_parameters
        if reason is not None:
            raise InputError(f"{reason} is not for target_parameters ({self.weight_name!r}); leave one of them out")
        plain_weight(self.holder, self.weight_name)

    def unwrapped(self) -> nn.Module:
        """The module without its adapters of any parameter."""
        return self.holder.train(self.training)


def n_experts(weight: Tensor) -> int:
    """How many matrices a parameter of two or three axes stacks.

    Raises:
        InputError: other axes.
    """
    if weight.dim() not in (2, 3):
        raise InputError(f"target_parameters chooses a parameter of {weight.dim()} axes; adapters are for 2 and 3")
    return weight.shape[0] if weight.dim() == 3 else 1


def is_transposed(module: nn.Module) -> bool:
    """Whether a module of transformers says that its experts are (k, d), as those of gpt-oss are."""
    return bool(vars(module).get("is_transposed", False))


def stacked_shapes(module: nn.Module, name: str, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of A and B for a parameter of a module."""
    weight = module.get_parameter(name)
    experts, (rows, columns) = n_experts(weight), weight.shape[-2:]
    d, k = (columns, rows) if weight.dim() == 3 and is_transposed(module) else (rows, columns)
    return (experts * rank, k), (d, experts * rank)
