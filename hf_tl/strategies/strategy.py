"""What a strategy of transfer is, what it may spend, and which ones there are by name."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np

from hf_tl.errors import InputError
from hf_tl.names import closest
from hf_tl.plugins import find_plugin, plugin_names
from hf_tl.strategies.reporting import Reporting


if TYPE_CHECKING:
    from hf_tl.analysis.footprint import Footprint
    from hf_tl.classifier import Classifier
    from hf_tl.models import Network
    from hf_tl.strategies.transfer import Transfer

SearchBackend = Literal["grid", "optuna", "ray"]
Predict = Callable[[np.ndarray], np.ndarray]
BUILT_IN = {  # name -> what makes it
    "last layer": "hf_tl.strategies.feature_extraction:last_layer",
    "full network": "hf_tl.strategies.feature_extraction:full_network",
    "linear probe": "hf_tl.strategies.feature_extraction:linear_probe",
    "LoRA": "hf_tl.strategies.low_rank:lora",
    "DoRA": "hf_tl.strategies.low_rank:dora",
    "split": "hf_tl.strategies.fine_tuning:split",
    "measured cut": "hf_tl.strategies.fine_tuning:measured_cut",
    "LP-FT": "hf_tl.strategies.fine_tuning:lp_ft",
    "full fine-tuning": "hf_tl.strategies.fine_tuning:full_fine_tuning",
    "from scratch": "hf_tl.strategies.fine_tuning:from_scratch",
}

UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "": 1.0}
DURATION = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*")
SAVE_AND_PREDICT = """\
classifier.save_pretrained("classifier")
print(classifier)
print(Classifier.from_pretrained("classifier").predict([task.test[0]]))
"""


@dataclass(frozen=True)
class Effort:
    """What every strategy may spend on one fit; the same for all, so that none wins by being tuned longer.

    Attributes:
        epochs: that a training has at most, for each setting that is tried.
        trials: settings that are tried, such as learning rates or values of C; the validation samples choose.
        steps: of a training, at least: where there are few samples, an epoch passes over them several times.
        patience: epochs without a lower validation loss after which a training stops.
        batch_size: samples a step.
        deadline: a reading of `time.monotonic` at which a training stops, whatever it has reached.
        search: who proposes the settings: a fixed "grid"; or a backend of `Trainer.hyperparameter_search`, "optuna",
            or "ray", which trains them side by side on a cluster. The first one is the strategy's own in any case.
        bf16: whether trainings compute in bfloat16, as `TrainingArguments` says; "auto" for that and the layout of
            images that a few steps show to be fastest, measured once for a folder. Else channels are last where most
            weights are convolutions'.
        reporting: where Trainer reports each training; `compare` and `advise` say so, of their `report_to`.
    """

    epochs: int = 20
    trials: int = 3
    steps: int = 100
    patience: int = 5
    batch_size: int = 16
    deadline: float = math.inf
    search: SearchBackend = "grid"
    bf16: bool | Literal["auto"] = False
    reporting: Reporting = field(default_factory=Reporting)

    def __post_init__(self) -> None:
        for name in ("epochs", "trials", "steps", "patience", "batch_size"):
            if vars(self)[name] < 1:
                raise InputError(f"{name} should be at least 1, got {vars(self)[name]}")
        if self.search not in get_args(SearchBackend):
            raise InputError(f"search should be one of {list(get_args(SearchBackend))}, got {self.search!r}")
        if not isinstance(self.bf16, bool) and self.bf16 != "auto":
            raise InputError(f"bf16 should be True, False or 'auto', got {self.bf16!r}")

    def to_dict(self) -> dict[str, Any]:
        """What of it decides a result, as ledgers keep it; without what is as it was before there was a choice."""
        said = asdict(self)
        del said["deadline"], said["reporting"]
        if self.search == "grid":
            del said["search"]
        if self.bf16 is False:
            del said["bf16"]
        return said

    def passes(self, n: int) -> int:
        """How often an epoch passes over `n` samples."""
        return math.ceil(self.steps / (self.epochs * math.ceil(n / self.batch_size)))

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self.deadline


def in_seconds(budget: str | float) -> float:
    """A budget, "90s", "10min", "2h" or a number, in seconds.

    Raises:
        InputError: none that is above 0.
    """
    if isinstance(budget, str):
        found = DURATION.fullmatch(budget.lower())
        seconds = math.nan if found is None or found[2] not in UNITS else float(found[1]) * UNITS[found[2]]
    else:
        seconds = float(budget)
    if not seconds > 0:
        raise InputError(f"a budget should be a duration such as '90s', '10min' or '2h', got {budget!r}")
    return seconds


@dataclass(frozen=True)
class Fitted:
    """What a strategy has learnt.

    Attributes:
        predict: indices of samples, as `Transfer` numbers them, -> (n,) numbers of classes.
        setting: the chosen one, in words.
        validation: its accuracy on the validation samples; NaN where there were none to choose by.
        trials: settings that were tried.
        samples_seen: samples that went through the network, forward, of all settings together.
        stopped: why it ended before its time, in words; "" where it did not.
        network: the trained one, where there is one.
        to_classifier: makes the artefact that is saved and predicts new samples; None where a strategy has none.
        elsewhere: what was spent in other processes while this one waited.
    """

    predict: Predict
    setting: str
    validation: float
    trials: int
    samples_seen: int
    stopped: str = ""
    network: Network | None = field(default=None, repr=False)
    to_classifier: Callable[[], Classifier] | None = field(default=None, repr=False)
    elsewhere: tuple[Footprint, ...] = field(default=(), repr=False)


@runtime_checkable
class Strategy(Protocol):
    """A way to get a classifier of new classes from a pre-trained network; stateless, so that one serves many fits.

    Attributes:
        name: in tables, and in the ledger.
    """

    @property
    def name(self) -> str:
        """In tables, and in the ledger, where another name is another strategy."""

    def fit(
        self, transfer: Transfer, train: np.ndarray, validation: np.ndarray, *, effort: Effort, seed: int
    ) -> Fitted:
        """Learns from some samples; what is chosen is chosen on others.

        Args:
            transfer: network and samples.
            train: (n,) indices of the samples to learn from.
            validation: (m,) indices of those to choose by; empty where there are too few.
            effort: what may be spent.
            seed: of all that is random.
        """

    def code(self, transfer: Transfer, setting: str) -> str:
        """A script that does the same on all training samples with a setting, saves the classifier and predicts."""


def find_strategy(name: str | Strategy) -> Strategy:
    """The strategy of a name: one of BUILT_IN, that of a plug-in, "module:name"; or the object itself.

    Raises:
        InputError: there is none, or it is no strategy.
    """
    if not isinstance(name, str):
        found: object = name
    elif name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        found = vars(import_module(module))[attribute]()
    else:
        maker = find_plugin("strategy", name)
        if maker is None:
            known = [*BUILT_IN, *plugin_names("strategy")]
            raise InputError(f"there is no strategy {name!r} among {known}; {closest(name, known)}")
        found = maker()
    if not isinstance(found, Strategy):
        raise InputError(f"strategy {name!r} should have a name, fit and code, got {type(found).__name__}")
    return found


def find_strategies(names: Sequence[str | Strategy]) -> list[Strategy]:
    """The strategies of several names, none twice.

    Raises:
        InputError: one that is none, none at all, or two of one name.
    """
    found = [find_strategy(name) for name in ([names] if isinstance(names, str) else names)]
    said = [strategy.name for strategy in found]
    if not found or len(set(said)) < len(said):
        raise InputError(f"strategies should be one or more, each of its own name, got {said}")
    return found
