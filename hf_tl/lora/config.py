"""LoraConfig: what to adapt and how, in PEFT's field names, checked when it is made."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hf_tl.errors import InputError
from hf_tl.names import closest


INITS = {
    "kaiming": "A uniform in +-1/sqrt(fan_in), B zero: PEFT's default",
    "random": "A and B both as torch draws a new layer; changes the output from the start (PEFT's False)",
    "gaussian": "A normal with deviation 1/r, B zero",
    "gaussian_b": "A zero, B normal with deviation 1/r: the other order, needs a smaller learning rate",
    "orthogonal": "A and B random in complementary halves of the rank, /10: neither is zero, B A is",
    "pissa": "the r largest singular directions of W move into B A; W keeps the rest, the output stays",
    "olora": "the first r columns of W's QR move into B A; W keeps the rest, the output stays",
    "eva": "rows of A are the leading right singular vectors of the layer's inputs (see eva.py), B zero",
}
BIASES = ("none", "all", "lora_only")
ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoraConfig:
    """W stays frozen (d x k); the update is `scaling * B A` with A (r x k) and B (d x r).

    The names and meanings are PEFT's, so that a config moves between the two unchanged; a field that PEFT does
    not know says so.

    Attributes:
        r: rank of the update.
        target_modules: which modules get an adapter: names, each matching a whole module name or its last parts;
            a regular expression over whole names; "all-linear" for every linear layer but the head; None for the
            attention projections (transformers), or the default of the model's family.
        exclude_modules: modules that get none, by the same rules.
        lora_alpha: the update is scaled by lora_alpha / r.
        use_rslora: scale by lora_alpha / sqrt(r) instead (Kalajdzievski, 2023).
        lora_dropout: probability with which an element of the adapter's input is dropped in training.
        bias: which biases of the network train: "none", "all", or those of adapted layers ("lora_only").
        lora_bias: whether B has a bias.
        use_dora: learn the length of each row of W apart from its direction (DoRA, Liu et al., ICML 2024).
        modules_to_save: modules that train in full and are saved with the adapter; None for the head of the
            task, found by itself; () for none.
        init_lora_weights: a key of INITS; True is "kaiming", False is "random", and "pissa_niter_4" is "pissa" by
            the randomised decomposition with 4 iterations.
        rank_pattern: rank by pattern over module names (a regular expression for their last parts); first match wins.
        alpha_pattern: lora_alpha likewise.
        layers: which layers are adapted, as `hf_tl.select` names them ("50%..", "-2.., head"); None for all. Not in
            PEFT; saved as the names of the modules that were chosen.
        layers_to_transform: indices of the blocks that are adapted, as PEFT counts them; None for all.
        layers_pattern: name of the list that the blocks stand in ("layers", "h"); None for the first list.
        fused_parts: which parts of a fused query-key-value projection are adapted, as letters of "qkv"; None for
            all. Not in PEFT; saved as an ordinary adapter of rank r * parts whose other rows of B are zero.
        freeze_a: train B alone (LoRA-FA, Zhang et al., 2023). Not in PEFT.
        fan_in_fan_out: kept for PEFT; how W is stored is read off the layer itself.
        task_type: PEFT's name of the task ("SEQ_CLS", "CAUSAL_LM", ...), kept for its loaders.
        base_model_name_or_path: which network the adapter is for.
        revision: of that network.
        inference_mode: kept for PEFT.
    """

    r: int = 8
    target_modules: Sequence[str] | str | None = None
    exclude_modules: Sequence[str] | str | None = None
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    fan_in_fan_out: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    modules_to_save: Sequence[str] | None = None
    init_lora_weights: str | bool = "kaiming"
    layers: str | None = None
    layers_to_transform: Sequence[int] | int | None = None
    layers_pattern: Sequence[str] | str | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_dora: bool = False
    lora_bias: bool = False
    fused_parts: str | None = None
    freeze_a: bool = False
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False

    def __post_init__(self):
        settle = {True: "kaiming", False: "random"}.get(self.init_lora_weights, self.init_lora_weights)
        object.__setattr__(self, "init_lora_weights", settle)
        for name in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
            _check_names(name, getattr(self, name))
        for rank in (self.r, *self.rank_pattern.values()):
            if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                raise InputError(
                    f"r must be a whole number of at least 1, got {rank!r}; delete_adapter drops an adapter"
                )
        for alpha in (self.lora_alpha, *self.alpha_pattern.values()):
            if not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
                raise InputError(f"lora_alpha must be a finite number, got {alpha!r}")
        if not 0.0 <= self.lora_dropout < 1.0:
            raise InputError(f"lora_dropout must be a probability below 1, got {self.lora_dropout}")
        if self.bias not in BIASES:
            raise InputError(f"bias must be one of {', '.join(BIASES)}, got {self.bias!r}")
        if not re.fullmatch(r"pissa_niter_\d+", settle) and settle not in INITS:
            raise InputError(f"unknown init_lora_weights {settle!r}; {closest(str(settle), tuple(INITS))}")
        if self.fused_parts is not None and (not self.fused_parts or set(self.fused_parts) - set("qkv")):
            raise InputError(f"fused_parts must be letters of 'qkv' such as 'qv', got {self.fused_parts!r}")
        if self.layers is not None and not isinstance(self.layers, str):
            raise InputError(f"layers must be a selection such as '50%..' or '0, 3', got {self.layers!r}")
        if self.layers is not None and self.layers_to_transform is not None:
            raise InputError(
                f"layers={self.layers!r} and layers_to_transform={self.layers_to_transform!r} both choose blocks; "
                "leave one out"
            )
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise InputError(
                "layers_to_transform needs target_modules as a list of names; "
                f"with {self.target_modules!r}, choose the blocks by layers='0, 3'"
            )
        if self.layers_pattern is not None and self.layers_to_transform is None:
            raise InputError(f"layers_pattern={self.layers_pattern!r} needs layers_to_transform")
        for pattern in (*self.rank_pattern, *self.alpha_pattern):
            _check_regex(pattern)
        for pattern in (self.target_modules, self.exclude_modules):
            if isinstance(pattern, str):
                _check_regex(pattern)

    def scaling(self, rank: int, alpha: float) -> float:
        """What B A is multiplied with: alpha / rank, or alpha / sqrt(rank) with `use_rslora`."""
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def _check_names(name: str, value: object) -> None:
    if value is None or (isinstance(value, str) and name != "modules_to_save"):
        return
    if isinstance(value, (str, Mapping)) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{name} must be a list of module names, got {value!r}")


def _check_regex(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"{pattern!r} is not a regular expression: {error}") from error
