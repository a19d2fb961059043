"""The low-rank side path with its own backward: the input is kept once, in its own dtype.

Written with torch's operators, `y + s * (drop(x) A') B'` keeps for the backward pass a copy of x in the adapter's
dtype, the dropped x, and a mask of the same width. `add_low_rank` keeps x itself (which the queries, keys and values
of a block share), one byte of mask per element, and x A', and adds to y in place where nobody else can see y. Where
autocast narrows x, the narrow copy is made once for the layers that read the same x, and kept in its place.
`add_low_rank_to_product` makes y too, and so can add to the gradient of x in place.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from torch.nn import functional as F


_LONG_SUM = 1024  # rows


def add_low_rank(
    y: Tensor, x: Tensor, *, a: Tensor, b: Tensor, scale: float, dropout: float = 0.0, owned: bool = False
) -> Tensor:
    """`y + scale * drop(x) A' B'`, in the dtype of y.

    Under autocast the adapter computes in autocast's dtype, otherwise in that of A, as PEFT does.

    Args:
        y: (..., d), what the frozen layer returned for x.
        x: (..., k).
        a: (r, k).
        b: (d, r).
        scale: the adapter's scaling.
        dropout: probability; 0 where the layer is not training.
        owned: nobody else holds y, so it may be written.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else a.dtype
    if torch.compiler.is_compiling():  # the compiler decides better than we do what to keep
        return _plain(y, x, a, b, scale, dropout, dtype)
    if not torch.is_grad_enabled():
        h = F.dropout(x.to(dtype), dropout).reshape(-1, x.shape[-1]) @ a.to(dtype).t()
        return _accumulate(y, h, b.to(dtype), scale, owned)
    narrow = _narrowed(x, dtype) if dtype.itemsize < x.dtype.itemsize else None
    return _AddLowRank.apply(y, x, narrow, a, b, scale, dropout, dtype, owned and not y._is_view())


def add_low_rank_to_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, a: Tensor, b: Tensor, scale: float
) -> Tensor:
    """`x W' + bias + scale * x A' B'` of a frozen weight, all of one dtype.

    The values are those of `add_low_rank` after a linear layer. In the backward pass the product that makes the
    adapter's part of the gradient of x adds it to the weight's part, so it is never written by itself; the last digit
    of the sum may differ.

    Args:
        x: (..., k).
        weight: (d, k).
        bias: (d,), or None.
        a: (r, k).
        b: (d, r).
        scale: the adapter's scaling.
    """
    return _AddLowRankToProduct.apply(x, weight, bias, a, b, scale)


def sums_are_long(x: Tensor) -> bool:
    """Whether so many rows go through a layer on a CPU that its sums are ordered for speed, not to PEFT's last bit."""
    return x.device.type == "cpu" and x.numel() >= _LONG_SUM * x.shape[-1]


def _plain(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, dropout: float, dtype: torch.dtype) -> Tensor:
    h = F.linear(F.dropout(x.to(dtype), dropout), a.to(dtype))
    return (y + F.linear(h, b.to(dtype)) * scale).to(y.dtype)


def _accumulate(y: Tensor, h: Tensor, b: Tensor, scale: float, owned: bool) -> Tensor:
    """`y + scale * h B'`: one pass over y where the dtypes agree, else through the wider of the two."""
    y2 = y.reshape(-1, y.shape[-1])
    if y.dtype == h.dtype:
        if owned and y.is_contiguous():
            y2.addmm_(h, b.t(), alpha=scale)
            return y
        return torch.addmm(y2, h, b.t(), alpha=scale).view(y.shape)
    wide = torch.promote_types(y.dtype, h.dtype)
    if wide == h.dtype:
        return torch.addmm(y2.to(wide), h, b.t(), alpha=scale).to(y.dtype).view(y.shape)
    return y2.add((h @ b.t()).to(wide), alpha=scale).to(y.dtype).view(y.shape)


class _AddLowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, x, narrow, a, b, scale, dropout, dtype, owned):
        dropped, mask = x.to(dtype) if narrow is None else narrow, None
        if dropout > 0:
            dropped, mask = torch.native_dropout(dropped, dropout, True)
        h = dropped.reshape(-1, x.shape[-1]) @ a.to(dtype).t()
        out = _accumulate(y, h, b.to(dtype), scale, owned)
        if out is y:
            ctx.mark_dirty(y)
        _, needs_x, _, needs_a, needs_b = ctx.needs_input_grad[:5]
        ctx.save_for_backward(
            (x if narrow is None else narrow) if needs_a else None,
            mask if needs_a or needs_x else None,
            h if needs_b else None,
            a,
            b,
        )
        ctx.scale, ctx.keep, ctx.dtype, ctx.x = scale, 1 - dropout, dtype, (x.shape, x.dtype)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, mask, h, a, b = ctx.saved_tensors
        shape, x_dtype = ctx.x
        needs_y, needs_x, _, needs_a, needs_b = ctx.needs_input_grad[:5]
        rows = grad.reshape(-1, grad.shape[-1])  # a copy where attention transposed it, made once for both layers
        g = rows.to(ctx.dtype)
        if torch.is_grad_enabled():
            h = _again(x if x is None or x.dtype == x_dtype else None, a.to(ctx.dtype), mask, ctx.keep)
        grad_x = grad_a = grad_b = None
        if needs_b:
            grad_b = _scaled(outer_product(g, h), ctx.scale).to(b.dtype)
        if needs_a or needs_x:
            gh = _scaled(inner_product(g, b.to(ctx.dtype)), ctx.scale if mask is None else ctx.scale / ctx.keep)
        if needs_a:
            dropped = x.to(ctx.dtype)
            if mask is not None:
                dropped = torch.where(mask, dropped, 0)
            grad_a = (gh.t() @ dropped.reshape(-1, shape[-1])).to(a.dtype)
        if needs_x:
            grad_x = (gh @ a.to(ctx.dtype)).view(shape)
            if mask is not None:
                grad_x = torch.where(mask, grad_x, 0)
            grad_x = grad_x.to(x_dtype)
        return rows.view(grad.shape) if needs_y else None, grad_x, None, grad_a, grad_b, None, None, None, None


class _AddLowRankToProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, a, b, scale):
        h = x.reshape(-1, x.shape[-1]) @ a.t()
        out = _accumulate(F.linear(x, weight, bias), h, b, scale, owned=True)
        needs_x, _, _, needs_a, needs_b = ctx.needs_input_grad[:5]
        ctx.save_for_backward(x if needs_a else None, h if needs_b else None, weight if needs_x else None, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return out

    @staticmethod
    def backward(ctx, grad):
        x, h, weight, a, b = ctx.saved_tensors
        needs_x, _, _, needs_a, needs_b = ctx.needs_input_grad[:5]
        g = grad.reshape(-1, grad.shape[-1])
        if torch.is_grad_enabled():
            h = _again(x, a)
        grad_x = grad_a = grad_b = None
        if needs_b:
            grad_b = _scaled(outer_product(g, h), ctx.scale)
        if needs_a or needs_x:
            gh = _scaled(inner_product(g, b), ctx.scale)
        if needs_a:
            grad_a = gh.t() @ x.reshape(-1, ctx.shape[-1])
        if needs_x:
            grad_x = (g @ weight).addmm_(gh, a).view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None


def _again(x: Tensor | None, a: Tensor, mask: Tensor | None = None, keep: float = 1.0) -> Tensor:
    """`drop(x) A'` for a second derivative, to which the one that the forward pass made is a constant."""
    if x is None:
        raise NotImplementedError(
            "a second derivative of LoRA needs the layer's input, which is not kept where A is frozen and where "
            "autocast narrows it; train A, or compute without autocast"
        )
    x = x.to(a.dtype)
    return (x if mask is None else torch.where(mask, x, 0) / keep).reshape(-1, x.shape[-1]) @ a.t()


_latest: tuple[weakref.ref, int, weakref.ref] | None = None  # the x that was narrowed last, its version, its copy


def _narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in a narrower dtype; the copy of a moment ago, if this is the same x, and something still holds that copy."""
    global _latest
    if _latest is not None:
        wide, version, copy = _latest
        found = copy()
        if wide() is x and version == x._version and found is not None and found.dtype == dtype:
            return found
    with torch.no_grad():
        found = x.to(dtype)
    _latest = weakref.ref(x), x._version, weakref.ref(found)
    return found


def _scaled(value: Tensor, scale: float) -> Tensor:
    return value if scale == 1 else value.mul_(scale)


def inner_product(g: Tensor, b: Tensor) -> Tensor:
    """`g b`, (n, d), (d, r) -> (n, r): where n is large and r small, the transposed product takes half the time."""
    if sums_are_long(g) and g.dtype.itemsize >= 4:
        return (b.t() @ g.t()).t()
    return g @ b


def outer_product(g: Tensor, h: Tensor) -> Tensor:
    """`g' h`, (n, d), (n, r) -> (d, r).

    On CPUs torch sums this over n one after the other, which for a narrow h costs up to seven times what the
    transposed product does and loses a digit; short sums are left as PEFT has them, to the last bit.
    """
    if sums_are_long(g):
        return (h.t() @ g).t()
    return g.t() @ h
