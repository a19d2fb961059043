"""LoraConfig: what to adapt and how, in PEFT's field names.

Every field is declared once, with its check; adapter_config.json is read with the same checks (`check_field`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

from hf_tl.errors import InputError
from hf_tl.names import check_pattern, closest


INITS = {
    "kaiming": "A uniform in +-1/sqrt(fan_in), B zero: PEFT's default",
    "random": "A and B both as torch draws a new layer; changes the output from the start (PEFT's False)",
    "gaussian": "A normal with standard deviation 1/r, B zero",
    "gaussian_b": "A zero, B normal with standard deviation 1/r: the other order, needs a smaller learning rate",
    "orthogonal": "A and B random in complementary halves of the rank, /10: neither is zero, B A is",
    "pissa": "the r largest singular directions of W move into B A; W keeps the rest, the output stays",
    "olora": "the first r columns of W's QR move into B A; W keeps the rest, the output stays",
    "eva": "rows of A are the leading right singular vectors of the layer's inputs (initialize_eva), B zero",
}
BIASES = ("none", "all", "lora_only")
ALL_LINEAR = "all-linear"

NOT_IMPLEMENTED = {
    "use_qalora": "quantisation-aware LoRA",
    "layer_replication": "layers that are stacked several times",
    "megatron_config": "layers of Megatron",
    "alora_invocation_tokens": "activated LoRA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "routing among adapters (Arrow)",
    "kasa_config": "KaSA",
    "ensure_weight_tying": "tied copies of adapted layers",
}
"""PEFT's fields that change what an adapter computes, in words."""

WITHOUT_EFFECT = frozenset(
    ("runtime_config", "eva_config", "corda_config", "lora_ga_config", "loftq_config", "megatron_core")
) | {"qalora_group_size"}
"""PEFT's fields that change nothing of an adapter that is trained."""


SPLIT_BASE = ("pissa", "olora")
"""Inits with which PEFT takes a part out of the base weight that can be found again."""
_UNCHANGED_BASE = ("gaussian", "gaussian_b", "kaiming", "orthogonal", "eva")


class _Check(NamedTuple):
    expected: str  # "a whole number from 1", for the message
    accepts: Callable[[Any], bool]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 4096


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30  # nor NaN


def _is_rank(value: Any) -> bool:
    return _is_integer(value) and 1 <= value <= 2**20


def _is_list(value: Any, kind: Callable[[Any], bool]) -> bool:
    return isinstance(value, (Sequence, Set)) and not isinstance(value, str) and all(kind(item) for item in value)


def _is_tokens(value: Any) -> bool:
    return _is_list(value, lambda item: _is_integer(item) and 0 <= item < 2**31) and 0 < len(value) <= 2**20


def _is_patterns(value: Any, kind: Callable[[Any], bool]) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) <= 4096
        and all(isinstance(name, str) and len(name) <= 512 and kind(item) for name, item in value.items())
    )


def _optional(expected: str, accepts: Callable[[Any], bool]) -> _Check:
    return _Check(f"{expected} or None", lambda value: value is None or accepts(value))


_TEXT = _optional("a string", _is_text)
_NAMES = _optional("a string, a list of module names", lambda value: _is_text(value) or _is_list(value, _is_text))
_NAME_LIST = _optional("a list of module names", lambda value: _is_list(value, _is_text))
_INDICES = _optional(
    "a whole number, a list of them", lambda value: _is_integer(value) or _is_list(value, _is_integer)
)
_TOKENS = _optional(
    "a list of token indices from 0, such lists by name of an embedding",
    lambda value: _is_tokens(value) or (_is_patterns(value, _is_tokens) and bool(value)),
)
_FLAG = _Check("true or false", lambda value: isinstance(value, bool))
_RANK = _Check("a whole number of at least 1 (delete_adapter drops an adapter)", _is_rank)
_PROBABILITY = _Check("a probability below 1", lambda value: _is_number(value) and 0 <= value < 1)
_BIAS = _Check(f"one of {', '.join(BIASES)}", lambda value: value in BIASES)
_INIT = _Check("true, false or a string", lambda value: isinstance(value, bool) or _is_text(value))
_SELECTION = _optional("a selection such as '50%..' or '0, 3'", _is_text)
_PARTS = _optional(
    "letters of 'qkv' such as 'qv'", lambda value: _is_text(value) and bool(set(value)) and set(value) <= set("qkv")
)
_RANKS = _optional("at most 4096 patterns with whole numbers from 1", lambda value: _is_patterns(value, _is_rank))
_ALPHAS = _optional("at most 4096 patterns with finite numbers", lambda value: _is_patterns(value, _is_number))

_T = TypeVar("_T")


def _field(default: _T, check: _Check, *, in_peft: bool = True) -> _T:
    made = {"default": default} if not isinstance(default, dict) else {"default_factory": dict}
    return field(**made, metadata={"check": check, "in_peft": in_peft})


def _name_unknown(cls: type[_T]) -> type[_T]:
    """Lets unknown arguments end in a sentence: those of PEFT in what they stand for, others in the closest name."""
    plain = cls.__init__

    @functools.wraps(plain)
    def checked(self: _T, *args: Any, **values: Any) -> None:
        for name in values.keys() - _CHECKS.keys():
            if name in NOT_IMPLEMENTED:
                raise InputError(f"{name} asks for {NOT_IMPLEMENTED[name]}, which hf_tl does not implement; use peft")
            raise InputError(f"LoraConfig has no field {name!r}; {closest(name, list(_CHECKS))}")
        plain(self, *args, **values)

    cls.__init__ = checked  # type: ignore[assignment]  # the one that dataclass wrote takes no unknown names
    return cls


@_name_unknown
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
        target_parameters: which parameters that no layer of its own holds get one, such as the stacked experts of a
            mixture ("experts.gate_up_proj"): names, each matching a whole parameter name or its last parts.
            "all-linear" takes the experts in by itself. Without lora_dropout, use_dora and lora_bias.
        lora_alpha: the update is scaled by lora_alpha / r.
        use_rslora: scale by lora_alpha / sqrt(r) instead (Kalajdzievski, 2023).
        lora_dropout: probability with which an element of the adapter's input is dropped in training.
        bias: which biases of the network train: "none", "all", or those of adapted layers ("lora_only").
        lora_bias: whether B has a bias.
        use_dora: learn the L2 norm of each row of W apart from its direction (DoRA, Liu et al., ICML 2024).
        modules_to_save: modules that train in full and are saved with the adapter; None for the head of the
            task, found by itself; () for none.
        trainable_token_indices: rows of the input embeddings that train and are saved with the adapter, such as those
            of new tokens, and with them the same rows of an output layer with the same weight; or such lists by name
            of an embedding or output layer; None for none.
        init_lora_weights: a key of INITS; True is "kaiming", False is "random", and "pissa_niter_4" is "pissa" by
            the randomised decomposition with 4 iterations.
        rank_pattern: rank by pattern over module names (a regular expression for their last parts); first match wins.
        alpha_pattern: lora_alpha likewise.
        layers: which layers are adapted, as `hf_tl.select_layers` names them ("50%..", "-2.., head"); None for all.
            Not in PEFT; saved as the names of the modules that were chosen.
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

    r: int = _field(8, _RANK)
    target_modules: Sequence[str] | str | None = _field(None, _NAMES)
    exclude_modules: Sequence[str] | str | None = _field(None, _NAMES)
    target_parameters: Sequence[str] | None = _field(None, _NAME_LIST)
    lora_alpha: float = _field(8, _Check("a finite number", _is_number))
    lora_dropout: float = _field(0.0, _PROBABILITY)
    fan_in_fan_out: bool = _field(False, _FLAG)
    bias: Literal["none", "all", "lora_only"] = _field("none", _BIAS)
    use_rslora: bool = _field(False, _FLAG)
    modules_to_save: Sequence[str] | None = _field(None, _NAME_LIST)
    trainable_token_indices: Sequence[int] | Mapping[str, Sequence[int]] | None = _field(None, _TOKENS)
    init_lora_weights: str | bool = _field("kaiming", _INIT)
    layers: str | None = _field(None, _SELECTION, in_peft=False)
    layers_to_transform: Sequence[int] | int | None = _field(None, _INDICES)
    layers_pattern: Sequence[str] | str | None = _field(None, _NAMES)
    rank_pattern: Mapping[str, int] = _field({}, _RANKS)
    alpha_pattern: Mapping[str, float] = _field({}, _ALPHAS)
    use_dora: bool = _field(False, _FLAG)
    lora_bias: bool = _field(False, _FLAG)
    fused_parts: str | None = _field(None, _PARTS, in_peft=False)
    freeze_a: bool = _field(False, _FLAG, in_peft=False)
    task_type: str | None = _field(None, _TEXT)
    base_model_name_or_path: str | None = _field(None, _TEXT)
    revision: str | None = _field(None, _TEXT)
    inference_mode: bool = _field(False, _FLAG)

    def __post_init__(self) -> None:
        for name in _CHECKS:
            check_field(name, getattr(self, name))
        for name in ("rank_pattern", "alpha_pattern"):
            object.__setattr__(self, name, dict(getattr(self, name) or {}))
        if isinstance(self.target_modules, str) and self.target_modules.lower() == ALL_LINEAR:
            object.__setattr__(self, "target_modules", ALL_LINEAR)
        if self.init not in INITS and not re.fullmatch(r"pissa_niter_\d+", self.init):
            raise InputError(f"unknown init_lora_weights {self.init!r}; {closest(self.init, tuple(INITS))}")
        lists = self.layers_pattern or ()
        lists = (lists,) if isinstance(lists, str) else lists
        for pattern in (self.target_modules, self.exclude_modules, *self.rank_pattern, *self.alpha_pattern, *lists):
            if isinstance(pattern, str):
                check_pattern(pattern)
        self._check_blocks()

    def _check_blocks(self) -> None:
        indices = self.layers_to_transform
        if self.layers is not None and indices is not None:
            raise InputError(
                f"layers={self.layers!r} and layers_to_transform={indices!r} both choose blocks; leave one out"
            )
        if indices is not None and isinstance(self.target_modules, str):
            raise InputError(
                "layers_to_transform needs target_modules as a list of names; "
                f"with {self.target_modules!r}, choose the blocks by layers='0, 3'"
            )
        if self.layers_pattern is not None and indices is None:
            raise InputError(f"layers_pattern={self.layers_pattern!r} needs layers_to_transform")

    @property
    def init(self) -> str:
        """`init_lora_weights` as a key of INITS, or "pissa_niter_N"."""
        given = self.init_lora_weights
        return given if isinstance(given, str) else "kaiming" if given else "random"

    @property
    def subtracts_start(self) -> bool:
        """Whether the init moves a part of W into the factors, which PEFT takes out of W."""
        return self.init.startswith(("pissa", "olora"))

    @property
    def unfit_for_parameters(self) -> str | None:
        """The first setting that `target_parameters` cannot have, as `field=value`; None where there is none."""
        unable = {
            "lora_dropout": self.lora_dropout > 0,
            "use_dora": self.use_dora,
            "lora_bias": self.lora_bias,
            "init_lora_weights": self.init not in ("kaiming", "gaussian", "random"),
        }
        return next((f"{name}={getattr(self, name)!r}" for name, wanted in unable.items() if wanted), None)

    def scaling(self, rank: int, alpha: float) -> float:
        """What B A is multiplied with: alpha / rank, or alpha / sqrt(rank) with `use_rslora`."""
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


_CHECKS: dict[str, _Check] = {f.name: f.metadata["check"] for f in dataclasses.fields(LoraConfig)}
PEFT_FIELDS = tuple(f.name for f in dataclasses.fields(LoraConfig) if f.metadata["in_peft"])
"""The fields that an adapter_config.json may hold."""


def check_field(name: str, value: object, *, where: str = "") -> None:
    """Checks one field's value.

    Args:
        name: of the field.
        value: from a call, or from JSON.
        where: begins the message, such as the name of a file.

    Raises:
        InputError: a value of another kind, or out of range.
    """
    expected, accepts = _CHECKS[name]
    if not accepts(value):
        raise InputError(f"{where}{name} should be {expected}, got {shortened(value)}")


def check_fields(raw: Mapping[str, object], *, where: str) -> dict[str, object]:
    """The checked fields of a LoRA adapter's configuration, under PEFT's names.

    Fields that only matter before training (`eva_config`, ...) are left out; so are unknown ones that are null, false
    or empty.

    Args:
        raw: what adapter_config.json holds.
        where: the file, for messages.

    Raises:
        InputError: another method than LoRA, a value of the wrong kind, or an option that changes what the tensors
            mean and is not implemented here.
    """
    if raw.get("peft_type") != "LORA":
        raise InputError(
            f"{where} has peft_type={raw.get('peft_type')!r}; hf_tl loads LORA only, load other methods with peft"
        )
    checked: dict[str, object] = {"peft_type": "LORA"}
    for name, value in raw.items():
        inert = value is None or value is False or value == [] or value == {}
        if name in PEFT_FIELDS:
            check_field(name, value, where=f"{where}: ")
            checked[name] = value
        elif name == "auto_mapping" and isinstance(value, dict):
            checked[name] = value
        elif name in NOT_IMPLEMENTED and not inert:
            raise InputError(
                f"{where} has {name}={shortened(value)}, {NOT_IMPLEMENTED[name]}, which hf_tl does not implement; "
                f"load it with peft"
            )
        elif name not in ("peft_type", "peft_version", *WITHOUT_EFFECT) and not inert:
            raise InputError(
                f"{where} has {shortened(name)}: {shortened(value)}, which hf_tl does not know; load it with peft"
            )
    init = checked.get("init_lora_weights")
    if isinstance(init, str) and init not in (*_UNCHANGED_BASE, *SPLIT_BASE):
        raise InputError(
            f"{where} has init_lora_weights={shortened(init)}, after which the base weight is no longer the "
            f"pre-trained one; hf_tl cannot repeat that: load it with peft, or save it with peft's "
            f"path_initial_model_for_weight_conversion"
        )
    return checked


def shortened(value: object) -> str:
    """A value for a message, in at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
