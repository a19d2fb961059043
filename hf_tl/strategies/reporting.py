"""Where Trainer reports trainings as they go: its `report_to`, with a name for each of many."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_tl.errors import InputError


if TYPE_CHECKING:
    from transformers import TrainerCallback

BACKENDS = ("tensorboard", "mlflow", "trackio", "wandb")  # what writes into the folder of a training would be lost


@dataclass(frozen=True)
class Reporting:
    """Where a run is reported, and under which name.

    Attributes:
        report_to: names of backends, of BACKENDS; nothing is reported without any.
        folder: of TensorBoard's events, a folder for each training.
        title: network and task.
        run: strategy, samples per class and seed.
    """

    report_to: tuple[str, ...] = ()
    folder: str = ""
    title: str = ""
    run: str = ""

    @classmethod
    def of(cls, report_to: str | Sequence[str], *, folder: Path) -> Reporting:
        """To the backends of these names; TensorBoard's events go below `folder`, or TENSORBOARD_LOGGING_DIR if set.

        Raises:
            InputError: a backend that is unknown, or is not installed.
        """
        wanted = (report_to,) if isinstance(report_to, str) else tuple(report_to)
        for name in wanted:
            if name not in BACKENDS:
                raise InputError(f"report_to should be of {list(BACKENDS)}, got {name!r}")
        if wanted:
            from transformers.integrations import get_available_reporting_integrations

            missing = [name for name in wanted if name not in get_available_reporting_integrations()]
            if missing:
                raise InputError(f"report_to={missing[0]!r} needs {missing[0]}: pip install {missing[0]}")
        events = os.environ.get("TENSORBOARD_LOGGING_DIR") or folder / "tensorboard"
        return cls(tuple(name for name in BACKENDS if name in wanted), str(Path(events).expanduser().resolve()))

    def named(self, run: str, *, model: str, source: str) -> Reporting:
        """That of a run on a network and a task."""
        return replace(self, title=f"{Path(model).name} on {Path(source).name}", run=run)

    def run_name(self, rate: float) -> str | None:
        """Of a training; None where nothing is reported."""
        return f"{self.title}, {self._training(rate)}" if self.report_to else None

    def callbacks(self, rate: float) -> list[TrainerCallback]:
        """Those of one training; the name of its run is `run_name` of the arguments."""
        if not self.report_to:
            return []
        from transformers.integrations import get_reporting_integration_callbacks

        found: list[TrainerCallback] = []
        makers = get_reporting_integration_callbacks(list(self.report_to))
        for name, make in zip(self.report_to, makers, strict=True):
            found.append(make(self._writer(rate)) if name == "tensorboard" else make())
            found += _end_of_wandb() if name == "wandb" else []
        return found

    def _training(self, rate: float) -> str:
        return f"{self.run}, learning rate {rate:.4g}"

    def _writer(self, rate: float) -> Any:
        """Of a folder of its own: that of the Trainer is gone as the training ends."""
        writers = import_module("torch.utils.tensorboard" if find_spec("tensorboard") else "tensorboardX")
        return writers.SummaryWriter(os.path.join(self.folder, re.sub(r"[^\w.,+ -]", "-", self._training(rate))))


def _end_of_wandb() -> list[TrainerCallback]:
    """Ends a run of Weights & Biases with its training; the next one would go on with it. A run of the user stays."""
    import wandb
    from transformers import TrainerCallback

    class End(TrainerCallback):
        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            wandb.finish()

    return [] if wandb.run is not None else [End()]
