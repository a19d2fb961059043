"""LoRA+: B learns faster than A (Hayou et al., ICML 2024), as parameter groups for any optimizer and Trainer."""

from __future__ import annotations

from torch import Tensor, nn

from hf_tl.errors import InputError
from hf_tl.lora.adapted import record_of
from hf_tl.lora.embedding_table import LoraEmbedding


def create_loraplus_groups(
    model: nn.Module,
    *,
    lr: float,
    ratio: float = 16.0,
    lr_embedding: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict]:
    """Parameter groups in which every B learns `ratio` times faster than everything else.

        Trainer(model, args, optimizers=(torch.optim.AdamW(create_loraplus_groups(model, lr=1e-4)), None), ...)

    and Trainer makes its schedule for that optimizer: each group keeps its own share of the learning rate.

    Args:
        model: a network with adapters.
        lr: learning rate of A, of the head and of whatever else trains.
        ratio: learning rate of B over that of A; the paper finds 16 good, from 4 on for easy tasks.
        lr_embedding: learning rate of the adapters of embeddings; None for `lr`.
        weight_decay: of all groups but biases and DoRA's lengths, which have none.

    Returns:
        groups with the keys "params", "lr", "weight_decay" and "name"; empty ones are left out.

    Raises:
        InputError: a learning rate or ratio that is not positive, or nothing trains.
    """
    for name, value in {
        "lr": lr,
        "ratio": ratio,
        "lr_embedding": lr if lr_embedding is None else lr_embedding,
    }.items():
        if not value > 0:
            raise InputError(f"{name} must be above 0, got {value}")
    names: dict[Tensor, str] = {}
    for layer in record_of(model).layers.values():
        for adapter in layer.r:
            for part, parameter in layer.adapter_tensors(adapter):
                group = {"lora_B.weight": "lora_B"}.get(part, "lora_A")
                names[parameter] = "embedding" if isinstance(layer, LoraEmbedding) else group
    rates = {"lora_A": lr, "lora_B": lr * ratio, "embedding": lr_embedding or lr, "other": lr}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((names.get(parameter, "other"), parameter.dim() > 1), []).append(parameter)
    if not groups:
        raise InputError("nothing in the network trains; choose an adapter with set_adapter first")
    return [
        {
            "params": found,
            "lr": rates[name],
            "weight_decay": weight_decay if decays else 0.0,
            "name": name if decays else f"{name} (no decay)",
        }
        for (name, decays), found in groups.items()
    ]
