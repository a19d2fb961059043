"""How rows go through a network: batches, device, precision, layout."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from hf_tl.errors import InputError
from hf_tl.trace import Batch


OnBadRows = Literal["raise", "skip"]


@dataclass(frozen=True)
class Execution:
    """How rows go through a network; nothing here but `dtype` changes the values beyond rounding.

    Attributes:
        batch_size: rows a forward pass.
        device: where the network runs.
        on_bad_rows: whether a row that cannot be read, or whose activations are not finite, ends the pass or is
            left out.
        progress: whether a progress bar is drawn on standard error.
        dtype: "float32" for the network as it is; "bfloat16" for a copy of it in that precision.
        channels_last: whether images and convolutions are laid out with channels last.
        compiled: whether the network runs through `torch.compile`.
        workers: processes that read and prepare the next batches; 0 for none.
    """

    batch_size: int = 32
    device: str = "cpu"
    on_bad_rows: OnBadRows = "raise"
    progress: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    compiled: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        if self.on_bad_rows not in ("raise", "skip"):
            raise InputError(f"on_bad_rows should be 'raise' or 'skip', got {self.on_bad_rows!r}")
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"dtype should be 'float32' or 'bfloat16', got {self.dtype!r}")
        if self.workers < 0:
            raise InputError(f"workers must be at least 0, got {self.workers}")

    def batches(self, n_rows: int) -> list[range]:
        """The rows of each forward pass; the same for every run, whichever of them remain to be read."""
        starts = range(0, n_rows, self.batch_size)
        return [range(start, min(start + self.batch_size, n_rows)) for start in starts]

    def network(self, model: nn.Module) -> nn.Module:
        """The network, or a copy of it in another precision or layout: the user's stays as it is."""
        if self.dtype == "float32" and not self.channels_last:
            return model
        model = copy.deepcopy(model)
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
        return model.to(torch.bfloat16) if self.dtype == "bfloat16" else model

    def placed(self, batch: Batch) -> Batch:
        """The batch on the device, its images in the precision and layout of the network."""
        if isinstance(batch, torch.Tensor):
            return self._placed(batch)
        return {key: self._placed(value) for key, value in batch.items()}

    def _placed(self, value: torch.Tensor) -> torch.Tensor:
        value = value.to(self.device, non_blocking=True)
        if self.dtype == "bfloat16" and value.is_floating_point():
            value = value.to(torch.bfloat16)
        if self.channels_last and value.ndim == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        return value
