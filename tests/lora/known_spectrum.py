"""Adapters whose singular values are known."""

import torch

from hf_tl.lora.adapter import Adapter


def made(values, *, out=6, inner=9, config=None):
    """An adapter of one layer whose update has the given singular values."""
    r = len(values)
    U, V = (torch.linalg.qr(torch.randn(n, r, dtype=torch.float64)).Q for n in (out, inner))
    B, A = U * torch.tensor(values, dtype=torch.float64), V.T
    alpha = {"r": r, "lora_alpha": 2 * r}
    tensors = {"layer.lora_A.weight": A.contiguous(), "layer.lora_B.weight": (B / 2).contiguous()}
    return Adapter({"peft_type": "LORA", "target_modules": ["layer"], **alpha, **(config or {})}, tensors)


def whole_matrix(adapter):
    B, A = adapter.updates["layer"].factors()
    return B @ A
