"""DoRA: the length of each row of the weight is learnt apart from its direction (Liu et al., ICML 2024).

    W' = m * (W + s B A) / ||W + s B A||,  row by row, the length below the line taken as a constant (section 4.3).

The lengths are found without building the d x k product B A:

    ||W + s B A||^2 = ||W||^2 + 2 s sum((W A') * B) + s^2 sum((B (A A')) * B),  summed over each row.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hf_tl.lora.functions import inner_product


class Dense(Protocol):
    """A frozen layer `x W' + b` whose weight can be read as (d, k)."""

    base_layer: nn.Module

    def matrix(self) -> Tensor:
        """The frozen weight, (d, k)."""


def row_lengths(weight: Tensor, a: Tensor, b: Tensor, *, scale: float) -> Tensor:
    """`||W + scale * B A||` of every row, (d,), in float32 or wider; W (d, k), A (r, k), B (d, r)."""
    with torch.no_grad():
        wide = torch.promote_types(weight.dtype, a.dtype)
        weight, a, b = weight.to(wide), a.to(wide), b.to(wide)
        square = torch.linalg.vector_norm(weight, dim=1).square_()
        square += 2 * scale * ((weight @ a.t()) * b).sum(1)
        square += scale * scale * ((b @ (a @ a.t())) * b).sum(1)
        return square.clamp_(min=0).sqrt_()


def add_dora(
    y: Tensor,
    x: Tensor,
    layer: Dense,
    *,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    ratio: Tensor,
    scale: float,
    dropout: float,
    owned: bool = False,
) -> Tensor:
    """The layer's output with the rows of `W + scale * B A` multiplied by `ratio`, in the dtype of y.

    Args:
        y: (..., d), what the frozen layer returned for x.
        x: (..., k).
        layer: the frozen layer.
        a: (r, k).
        b: (d, r).
        bias: (d,), of B, or None.
        ratio: (d,), learnt length over present length.
        scale: the adapter's scaling.
        dropout: probability; where it is not 0, the frozen weight is applied to the dropped input once more.
        owned: nobody else holds y, so it may be written.
    """
    own = layer.base_layer.bias
    simple = dropout == 0 and bias is None and y.dtype == x.dtype == a.dtype and torch.is_grad_enabled()
    if simple and not torch.compiler.is_compiling() and not torch.is_autocast_enabled(x.device.type):
        return _Dora.apply(y, x, a, b, ratio, own, scale, owned and y.is_contiguous() and not y._is_view())
    x = x.to(a.dtype)
    if dropout > 0:
        x = F.dropout(x, dropout)
        plain = F.linear(x, layer.matrix().to(x.dtype))
    else:
        plain = y if own is None else y - own
    low = F.linear(F.linear(x, a), b, bias)
    return (y + (ratio - 1) * plain + ratio * low * scale).to(y.dtype)


def add_dora_to_product(
    x: Tensor, weight: Tensor, own: Tensor | None, *, a: Tensor, b: Tensor, ratio: Tensor, scale: float
) -> Tensor:
    """`own + ratio * x (W + scale * B A)'` of a frozen weight, all of one dtype; the last digits may differ.

    Args:
        x: (..., k).
        weight: (d, k).
        own: (d,), the layer's bias, or None.
        a: (r, k).
        b: (d, r).
        ratio: (d,), learnt length over present length.
        scale: the adapter's scaling.
    """
    return _DoraOfProduct.apply(x, weight, a, b, ratio, own, scale)


class _Dora(torch.autograd.Function):
    """`own + ratio * t` with `t = y - own + scale * x A' B'`, written into y if that is owned; keeps x, x A' and t."""

    @staticmethod
    def forward(ctx, y, x, a, b, ratio, own, scale, owned):
        h = x.reshape(-1, x.shape[-1]) @ a.t()
        flat = y.reshape(-1, y.shape[-1])
        t = (flat.clone() if own is None else flat - own).addmm_(h, b.t(), alpha=scale)
        ctx.save_for_backward(x, h, a, b, t, ratio)
        ctx.scale, ctx.shape = scale, x.shape
        if owned:
            ctx.mark_dirty(y)
        else:
            flat = torch.empty_like(t)
        torch.mul(t, ratio, out=flat) if own is None else torch.addcmul(own, t, ratio, out=flat)
        return y if owned else flat.view(y.shape)

    @staticmethod
    @once_differentiable  # h and t would be constants to a second derivative
    def backward(ctx, grad):
        x, h, a, b, t, ratio = ctx.saved_tensors
        needs_x = ctx.needs_input_grad[1]
        gt, gh, grad_a, grad_b, grad_ratio = _gradients(ctx, grad, x=x, h=h, b=b, t=t, ratio=ratio, needs_x=needs_x)
        grad_x = (gh @ a).view(ctx.shape) if needs_x else None
        return gt.view(grad.shape), grad_x, grad_a, grad_b, grad_ratio, None, None, None


class _DoraOfProduct(torch.autograd.Function):
    """The same of a frozen weight, with `t = x (W + scale * B A)'`; one product adds to the gradient of x in place."""

    @staticmethod
    def forward(ctx, x, weight, a, b, ratio, own, scale):
        h = x.reshape(-1, x.shape[-1]) @ a.t()
        t = F.linear(x, weight).reshape(-1, weight.shape[0]).addmm_(h, b.t(), alpha=scale)
        needs_x, _, needs_a, needs_b = ctx.needs_input_grad[:4]
        kept = (x if needs_a else None, h if needs_b else None, a, b, t, ratio, weight if needs_x else None)
        ctx.save_for_backward(*kept)
        ctx.scale, ctx.shape = scale, x.shape
        y = t * ratio if own is None else torch.addcmul(own, t, ratio)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, h, a, b, t, ratio, weight = ctx.saved_tensors
        needs_x = ctx.needs_input_grad[0]
        gt, gh, grad_a, grad_b, grad_ratio = _gradients(ctx, grad, x=x, h=h, b=b, t=t, ratio=ratio, needs_x=needs_x)
        grad_x = (gt @ weight).addmm_(gh, a).view(ctx.shape) if needs_x else None
        return grad_x, None, grad_a, grad_b, grad_ratio, None, None


def _gradients(
    ctx, grad: Tensor, *, x: Tensor | None, h: Tensor | None, b: Tensor, t: Tensor, ratio: Tensor, needs_x: bool
) -> tuple[Tensor | None, ...]:
    """Of t, of x A' (where A or x needs it), of A, B and the ratio."""
    needs_a, needs_b = ctx.needs_input_grad[2:4]
    out = torch.empty_like(t).view(grad.shape)  # for both products, and to bring a transposed gradient in order
    grad_ratio = torch.mul(grad, t.view(grad.shape), out=out).reshape(t.shape).sum(0)
    gt = torch.mul(grad, ratio, out=out).reshape(t.shape)
    gh = inner_product(gt, b).mul_(ctx.scale) if needs_a or needs_x else None
    grad_a = gh.t() @ x.reshape(-1, x.shape[-1]) if needs_a else None
    grad_b = (h.t() @ gt).t().mul(ctx.scale) if needs_b else None
    return gt, gh, grad_a, grad_b, grad_ratio
