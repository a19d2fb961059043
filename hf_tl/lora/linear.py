"""Adapters beside fully connected layers, the kind most networks are made of, with a backward pass that keeps less.


    LoRA    y + s * drop(x) A' B'
    DoRA    c + ratio * (y - c + s * x A' B'),  ratio = m / ||W + s B A||, a number for each output

y is the frozen layer's output `x W' + c`. Written with torch's operators this keeps for the backward pass x in the
adapter's dtype, the dropped x and a float mask; here x is kept as it came (which the queries, keys and values of a
block share), one byte of mask for each of its elements, and x A', of r columns. With DoRA what the ratio multiplies is
kept too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_tl.architectures import is_conv1d
from hf_tl.errors import InputError
from hf_tl.lora.layer import LoraLayer
from hf_tl.lora.quantised import is_quantised


class LoraLinear(LoraLayer):
    """Adapters beside nn.Linear, transformers' Conv1D, or a subclass that computes x W' + c, quantised ones too."""

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.transposed = is_conv1d(base_layer)

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """`x W' + c` and what the active adapters add: (..., k) -> (..., d)."""
        self.called.add(self.training)
        y = self.base_layer(x, *args, **kwargs)
        for adapter in self.running:
            y = self._add(y, x, adapter)
        return y

    def _add(self, y: Tensor, x: Tensor, adapter: str) -> Tensor:
        a, b = self.factors(adapter)
        scale, extra = self.scaling[adapter], self.extra_bias(adapter)
        dropout = self.lora_dropout[adapter] if self.training else 0.0
        extra = None if extra is None else extra * scale
        if not self.use_dora[adapter]:
            out = add_low_rank(y, x, a=a, b=b, scale=scale, dropout=dropout)
        else:
            ratio = self.dora_ratio(adapter)
            extra = None if extra is None else extra * ratio
            if dropout == 0:
                out = add_low_rank(y, x, a=a, b=b, scale=scale, ratio=ratio, bias=self.base_layer.bias)
            else:  # what the ratio changes is the output for the dropped input
                dropped = F.dropout(x.to(a.dtype), dropout)
                plain = F.linear(dropped, self.matrix().to(a.dtype))
                out = y - plain + add_low_rank(plain, dropped, a=a, b=b, scale=scale, ratio=ratio)
        return out.to(y.dtype) if extra is None else (out + extra).to(y.dtype)

    def check_weight(self) -> None:
        """See LoraLayer: of a subclass, the output for a random input is compared with the weight's."""
        weight, base = self.matrix(), self.base_layer
        usual = type(base).forward is nn.Linear.forward or is_conv1d(base)
        plain = weight.is_meta or usual or is_quantised(base)
        if not plain and _is_other_matrix(base):
            raise InputError(
                f"{type(base).__name__} computes something else than x W' + c with its weight; DoRA, PiSSA, OLoRA and "
                "a merge would be of another matrix: choose another adapter, or exclude_modules"
            )

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See LoraLayer."""
        d, k = self.frozen_weight.shape[::-1] if self.transposed else self.frozen_weight.shape
        if isinstance(self.base_layer, nn.Linear):  # a packed weight has another shape
            d, k = self.base_layer.out_features, self.base_layer.in_features
        return (rank, k), (d, rank)


def add_low_rank(
    y: Tensor,
    x: Tensor,
    *,
    a: Tensor,
    b: Tensor,
    scale: float,
    dropout: float = 0.0,
    ratio: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The layer's output with the update, in the dtype of y.

    Under autocast the adapter computes in autocast's dtype, otherwise in that of A, as PEFT does.

    Args:
        y: (..., d), what the frozen layer returned for x.
        x: (..., k).
        a: (r, k).
        b: (d, r).
        scale: the adapter's scaling.
        dropout: probability; 0 where the layer is not training.
        ratio: (d,), of DoRA, which takes no dropout here; None for LoRA.
        bias: (d,), the frozen layer's own, which DoRA's ratio spares; or None.
    """
    kind = x.device.type
    casts = kind != "meta" and torch.is_autocast_enabled(kind)  # which knows no such device
    dtype = torch.get_autocast_dtype(kind) if casts else a.dtype
    if not _is_transformed():
        return _AddLowRank.apply(y, x, a, b, ratio, bias, scale, dropout, dtype)
    update = F.linear(F.linear(F.dropout(x.to(dtype), dropout), a.to(dtype)), b.to(dtype)) * scale
    if ratio is None:
        return (y + update).to(y.dtype)
    own = 0.0 if bias is None else bias
    return (own + ratio * (y - own + update)).to(y.dtype)


def _is_transformed() -> bool:
    """Whether torch compiles, traces or transforms what runs (torch.func, forward mode), for which it needs operators.

    A compiler chooses by itself what to keep for the backward pass.
    """
    # the last two are not public; tests/lora/test_autograd.py watches
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def computes_otherwise(module: nn.Module) -> bool:
    """True for a linear layer whose class computes something else than x W' + c, such as the router of Llama 4.

    Falcon's has a forward pass of its own too, which gives the same. Quantised layers are not asked: they do not stand
    in the file of one network.
    """
    own = isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward
    if not own or not type(module).__module__.startswith("transformers.models."):
        return False
    return _is_other_matrix(module)


def _is_other_matrix(layer: nn.Module) -> bool:
    """Whether its output for a random input is not that of its weight, or no tensor."""
    weight, bias = getattr(layer, "weight").detach(), getattr(layer, "bias", None)  # noqa: B009  # it may be computed
    if weight.is_meta:
        return False
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        x = torch.randn(2, weight.shape[1]).to(weight)
        try:
            found = type(layer).forward(layer, x)  # past the hooks, which are not asked
        except RuntimeError:  # it takes other shapes, as the grouped one of DeepSeek-V4 does
            return True
        if not isinstance(found, Tensor):
            return True
        plain = F.linear(x, weight, bias)
    return found.shape != plain.shape or bool((found - plain).abs().max() > 0.01 * plain.abs().max())


def _rows(x: Tensor) -> Tensor:
    """(..., k) -> (n, k), a view where it can be; (k,) -> (1, k)."""
    return x.reshape(-1, x.shape[-1])


class _AddLowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        ratio: Tensor | None,
        bias: Tensor | None,
        scale: float,
        dropout: float,
        dtype: torch.dtype,
    ) -> Tensor:
        seen, mask = x.to(dtype), None
        if dropout > 0:
            seen, mask = torch.native_dropout(seen, dropout, True)
        h = _rows(seen) @ a.to(dtype).t()
        wide = torch.promote_types(y.dtype, dtype)
        out = y.to(wide, copy=True, memory_format=torch.contiguous_format)
        if bias is not None:
            out -= bias
        rows = out.view(-1, out.shape[-1])  # not what is returned, which may be changed in place as no view may be
        rows.addmm_(h.to(wide), b.to(wide).t(), alpha=scale)
        _, needs_x, needs_a, needs_b = ctx.needs_input_grad[:4]
        kept = (x if needs_a else None, mask if needs_a or needs_x else None, h if needs_b else None)
        ctx.save_for_backward(*kept, a, b, ratio, None if ratio is None else out)
        ctx.scale, ctx.keep, ctx.dtype, ctx.shape, ctx.x_dtype = scale, 1 - dropout, dtype, x.shape, x.dtype
        if ratio is not None:
            out = out * ratio if bias is None else torch.addcmul(bias.to(wide), out, ratio.to(wide))
        return out.to(y.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mask, h, a, b, ratio, stretched = ctx.saved_tensors
        needs_y, needs_x, needs_a, needs_b, needs_ratio = ctx.needs_input_grad[:5]
        grad_x = grad_a = grad_b = grad_ratio = None
        if needs_ratio:
            grad_ratio = _rows(grad * stretched).sum(0).to(ratio.dtype)
        if ratio is not None:
            grad = (grad * ratio).to(grad.dtype)
        g = _rows(grad).to(ctx.dtype)  # a copy where attention transposed it
        seen = None
        if needs_a:
            seen = _rows((x if mask is None else x * mask).to(ctx.dtype))
        if torch.is_grad_enabled():  # a second derivative: to it, h is no constant
            h = _again(seen, a.to(ctx.dtype), ctx.keep, ratio)
        if needs_b:
            grad_b = (h.t() @ g).t().mul(ctx.scale).to(b.dtype)  # on CPUs faster than g' h, by up to seven times
        if needs_a or needs_x:
            gh = (g @ b.to(ctx.dtype)).mul(ctx.scale / ctx.keep)
        if needs_a:
            grad_a = (gh.t() @ seen).to(a.dtype)
        if needs_x:
            grad_x = (gh @ a.to(ctx.dtype)).view(ctx.shape)
            grad_x = (grad_x if mask is None else grad_x * mask).to(ctx.x_dtype)
        return grad if needs_y else None, grad_x, grad_a, grad_b, grad_ratio, None, None, None, None


def _again(seen: Tensor | None, a: Tensor, keep: float, ratio: Tensor | None) -> Tensor:
    if seen is None or ratio is not None:
        raise NotImplementedError(
            "a second derivative of LoRA needs the layer's input, which is not kept where A is frozen, and there is "
            "none of DoRA; train A, and leave use_dora out"
        )
    return seen @ a.t() / keep
