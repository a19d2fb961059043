"""What a reader has to open to follow a call: the functions and files of hf_tl that it enters.

python tests/journeys.py [NAME ...]

A call is followed with `sys.setprofile` after all modules are imported; comprehensions count with their function.
"""

import importlib
import pkgutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import hf_tl


PACKAGE = Path(hf_tl.__file__).parent


@dataclass(frozen=True)
class Journey:
    """A call, and the files that it may enter.

    Attributes:
        prepare: makes what the call needs in a folder, and returns the call.
        most_files: how many files it may enter: what it enters now, and no more.
        goal: how many would be few enough.
    """

    prepare: Callable[[Path], Callable[[], object]]
    most_files: int
    goal: int


@dataclass
class Trail:
    """What a call entered: file -> its functions, in the order of their first calls."""

    files: dict[str, list[str]] = field(default_factory=dict)

    @property
    def n_functions(self) -> int:
        """How many functions, all files together."""
        return sum(map(len, self.files.values()))


def follow(call: Callable[[], object]) -> Trail:
    """The trail of one call."""
    trail, inside = Trail(), str(PACKAGE)

    def enter(frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(inside) and not code.co_name.startswith("<"):
            functions = trail.files.setdefault(Path(code.co_filename).relative_to(PACKAGE).as_posix(), [])
            if code.co_qualname not in functions:
                functions.append(code.co_qualname)

    sys.setprofile(enter)
    try:
        call()
    finally:
        sys.setprofile(None)
    return trail


def import_all() -> None:
    """Every module of hf_tl, so that no import is taken for a step of the journey."""
    for module in pkgutil.walk_packages(hf_tl.__path__, "hf_tl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def small_bert():
    """A BERT of four layers for two classes."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=2, **sizes))


def fit_transform(folder: Path) -> Callable[[], object]:
    import torch
    from torch import nn

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    fne = hf_tl.FullNetworkEmbedding(hf_tl.Network(model, prepare=torch.stack), progress=False)
    images = list(torch.randn(8, 3, 8, 8))
    return lambda: fne.fit_transform(images)


def trainer_with_a_policy(folder: Path) -> Callable[[], object]:
    from transformers import Trainer, TrainingArguments

    model, policy = small_bert(), hf_tl.PolicyCallback("freeze: ..50%; reinit: head; lr: decay 0.8")
    arguments = TrainingArguments(str(folder), use_cpu=True, report_to="none")
    return lambda: Trainer(model, arguments, callbacks=[policy])


def add_lora(folder: Path) -> Callable[[], object]:
    model, config = small_bert(), hf_tl.LoraConfig(r=4, target_modules="all-linear")
    return lambda: hf_tl.add_lora(model, config)


def save_adapter(folder: Path) -> Callable[[], object]:
    model = hf_tl.add_lora(small_bert(), hf_tl.LoraConfig(r=4, target_modules="all-linear"))
    return lambda: hf_tl.save_adapter(model, folder / "adapter")


def load_adapter(folder: Path) -> Callable[[], object]:
    save_adapter(folder)()
    model = small_bert()
    return lambda: hf_tl.load_adapter(model, folder / "adapter")


JOURNEYS = {
    "fit_transform": Journey(fit_transform, most_files=21, goal=16),
    "Trainer with a policy": Journey(trainer_with_a_policy, most_files=15, goal=11),
    "add_lora": Journey(add_lora, most_files=17, goal=8),
    "load_adapter": Journey(load_adapter, most_files=13, goal=10),
    "save_adapter": Journey(save_adapter, most_files=7, goal=7),
}


def main(*names: str) -> None:
    import_all()
    for name in names or JOURNEYS:
        with tempfile.TemporaryDirectory() as folder:
            trail = follow(JOURNEYS[name].prepare(Path(folder)))
        journey = JOURNEYS[name]
        limits = f"at most {journey.most_files}, goal {journey.goal}"
        print(f"{name}: {trail.n_functions} functions in {len(trail.files)} files ({limits})")
        for file, functions in trail.files.items():
            print(f"  {file:30} {', '.join(functions)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
