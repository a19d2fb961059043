"""A classifier as one torch module: a batch in, calibrated logits out, for `torch.export` and ONNX."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hf_tl.classifier.scorer import EmbeddingScorer, Scorer, logits_of
from hf_tl.embedding.pooling import pool
from hf_tl.embedding.taps import Tap
from hf_tl.errors import InputError
from hf_tl.trace import first_float


def classifier_module(scorer: Scorer, *, temperature: float) -> nn.Module:
    """A module from what `network.prepare` returns, by position or by keyword, to calibrated logits (n, n_outputs).

    It shares the network's weights and is in eval mode.

    Args:
        scorer: of a classifier.
        temperature: its calibration.

    Raises:
        InputError: an embedding in bfloat16.
    """
    if isinstance(scorer, EmbeddingScorer):
        return EmbeddingClassifier(scorer, temperature=temperature).eval()
    return NetworkClassifier(scorer.network.model, temperature=temperature).eval()


class NetworkClassifier(nn.Module):
    """The logits of a network, divided by a temperature.

    Args:
        model: the network.
        temperature: above 0.
    """

    def __init__(self, model: nn.Module, *, temperature: float):
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, *args: Tensor, **batch: Tensor) -> Tensor:
        """The network's batch -> logits (n, n_outputs)."""
        return logits_of(self.model(*args, **batch)) / self.temperature


class EmbeddingClassifier(nn.Module):
    """The full-network embedding and its head as one graph: taps, pooling, scaling, thresholds, linear head.

    Unlike `TapReader` it writes nothing in place, which a graph cannot, and runs the network to its end.

    Args:
        scorer: a fitted embedding with its head.
        temperature: above 0.
    """

    coef: Tensor
    intercept: Tensor

    def __init__(self, scorer: EmbeddingScorer, *, temperature: float):
        super().__init__()
        embedding = scorer.embedding
        if embedding.dtype_name != "float32":
            raise InputError(
                f"a module is made of features in float32, but these were fitted in {embedding.dtype_name}"
            )
        scaler, self.model = embedding.scaler(), scorer.network.model
        self.taps = embedding.find_fitted_taps()
        self.recipe, self.widths = scaler.recipe, [tap.n_features for tap in self.taps]
        self.wanted: dict[tuple[str, str], list[int]] = {}  # taps by the module, and by its side, that they read
        for i, tap in enumerate(self.taps):
            self.wanted.setdefault((tap.reading.module, tap.reading.side), []).append(i)
        divided = {"coef": scorer.head.coef, "intercept": scorer.head.intercept}
        constants = {name: values / np.float32(temperature) for name, values in divided.items()} | scaler.constants()
        for name, values in constants.items():
            self.register_buffer(name, torch.from_numpy(values.astype(np.float32)))

    def forward(self, *args: Tensor, **batch: Tensor) -> Tensor:
        """The network's batch -> logits (n, n_outputs)."""
        values: dict[int, Tensor] = {}
        n = (args[0] if args else next(iter(batch.values()))).shape[0]
        mask = batch.get("attention_mask")
        mask = mask if mask is not None and mask.ndim == 2 else None
        hooks = self._watch(values, n, mask)
        try:  # no ExitStack: older compilers cannot follow it
            self.model(*args, **batch)
        finally:
            for hook in hooks:
                hook.remove()
        features = self._scaled(torch.cat([values[i] for i in range(len(self.taps))], dim=1))
        return nn.functional.linear(features, self.coef, self.intercept)

    def _watch(self, values: dict[int, Tensor], n: int, mask: Tensor | None) -> list[RemovableHandle]:
        """Puts hooks on the network that pool each tap into `values`, by its number."""
        hooks: list[RemovableHandle] = []
        modules = dict(self.model.named_modules())
        calls = dict.fromkeys(self.wanted, 0)
        for (name, side), numbers in self.wanted.items():

            def read(value: object, key: tuple[str, str] = (name, side), numbers: list[int] = numbers) -> None:
                found = first_float(value)
                for i in numbers:
                    if self.taps[i].reading.call == calls[key] and found is not None:
                        values[i] = _pooled(self.taps[i], found, n, mask)
                calls[key] += 1

            if side == "input":
                hook = modules[name].register_forward_pre_hook(
                    lambda module, args, kwargs, read=read: read([args, kwargs]), with_kwargs=True
                )
            else:
                hook = modules[name].register_forward_hook(lambda module, args, output, read=read: read(output))
            hooks.append(hook)
        return hooks

    def _scaled(self, values: Tensor) -> Tensor:
        if self.recipe.scale == "l2-layer":
            parts = values.split(self.widths, dim=1)
            values = torch.cat([nn.functional.normalize(part, dim=1, eps=1e-30) for part in parts], dim=1)
        if self.recipe.thresholds is None:
            return (values - self.get_buffer("mean")) * self.get_buffer("rate")
        low, high = self.get_buffer("low"), self.get_buffer("high")
        below = values <= low if self.recipe.low_closed else values < low
        return (values > high).float() - below.float()


def _pooled(tap: Tap, value: Tensor, n: int, mask: Tensor | None) -> Tensor:
    return pool(
        tap.reading.finish(value),
        n=n,
        channels_last=tap.channels_last,
        mask=mask,
        how=tap.pool,
        prefix=tap.prefix,
        strides=tap.strides,
    ).float()
