"""A model card: metadata that the Hub indexes, and a part that each push writes anew between what people wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from hf_tl.errors import InputError, in_one_line
from hf_tl.hub import is_hub_name


if TYPE_CHECKING:
    from huggingface_hub import CardData, ModelCardData


BEGIN, END = "<!-- written by hf_tl, anew with each push: -->", "<!-- until here -->"


@dataclass(frozen=True)
class CardInfo:
    """What a model card says that no file can know.

    Attributes:
        datasets: what it was trained on: Hub ids, which the Hub links, or other names.
        results: metric -> value on held-out samples of the first of `datasets`.
        split: which samples those were.
        task: of the results, as the Hub calls it, "image-classification"; None where the network's head says it.
        training_seconds: how long the training took; None where it is not known, or a Trainer wrote it down.
        tags: further tags.
        license: an identifier of the Hub's, "apache-2.0".
        language: codes, ["en"].
        emissions: of the training, the Hub's field co2_eq_emissions, in grams: `Footprint.card_emissions()`.

    Raises:
        InputError: results that were measured on nothing.
    """

    datasets: Sequence[str] = ()
    results: Mapping[str, float] = field(default_factory=dict)
    split: str = "test"
    task: str | None = None
    training_seconds: float | None = None
    tags: Sequence[str] = ()
    license: str | None = None
    language: Sequence[str] = ()
    emissions: Mapping[str, float | str] | None = None

    def __post_init__(self) -> None:
        if self.results and not self.datasets:
            raise InputError(
                f"results ({', '.join(self.results)}) are measured on a dataset; name it with datasets=['user/name']"
            )


def write_card(
    old: str | None,
    *,
    title: str,
    body: str,
    info: CardInfo,
    metadata: Mapping[str, str | Sequence[str] | None],
    task: str | None = None,
) -> str:
    """A model card, or an old one with its metadata completed and its generated part replaced.

    Args:
        old: the text of a README.md; None where there is none.
        title: heading of a new card.
        body: Markdown of the generated part.
        info: what the user says.
        metadata: the Hub's fields; lists are united with those that are there, None leaves a field alone.
        task: the Hub's name of the task, where `info` has none.

    Raises:
        InputError: an old card whose metadata cannot be read, or results without a task.
    """
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(old if old and old.startswith("---") else f"---\n{{}}\n---\n{old or ''}")
    except Exception as error:  # YAML can fail in any way
        raise InputError(
            f"the metadata on top of README.md cannot be read ({in_one_line(error)}); correct or delete it"
        ) from error
    task = info.task or task
    said = {
        "datasets": [name for name in info.datasets if is_hub_name(name)],
        "license": info.license,
        "language": list(info.language),
        "pipeline_tag": task,
        "tags": info.tags,
    }
    for name, value in (*metadata.items(), *said.items()):
        _put(card.data, name, value)
    if info.emissions is not None:
        card.data["co2_eq_emissions"] = dict(info.emissions)
    if info.results:
        _put_results(cast("ModelCardData", card.data), info, title=title, task=task)
    card.text = _with_part(card.text, title=title, part=f"{BEGIN}\n\n{body.strip()}\n\n{END}")
    return str(card)


def results_table(info: CardInfo) -> str:
    """The results as a Markdown table with its heading; empty where there are none."""
    if not info.results:
        return ""
    rows = [f"| {metric} | {value:.4g} | {info.datasets[0]}, {info.split} |" for metric, value in info.results.items()]
    return "\n".join(["## Results", "", "| metric | value | measured on |", "|---|---|---|", *rows, "", ""])


def footprint_table(rows: Mapping[str, str]) -> str:
    """Facts about size and cost as a Markdown table with its heading."""
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["## Footprint", "", "| | |", "|---|---|", *lines, "", ""])


def data_sentence(info: CardInfo) -> str:
    """What it was trained on, linked where the Hub has it; empty where that is not said."""
    if not info.datasets:
        return ""
    links = [
        f"[{name}](https://huggingface.co/datasets/{name})" if is_hub_name(name) else name for name in info.datasets
    ]
    return f"Trained on {', '.join(links)}.\n"


def in_bytes(n: int) -> str:
    """A size for people: 1,234 bytes, 12.3 kB, 4.5 MB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} bytes"


def in_time(seconds: float) -> str:
    """A duration for people: 12 s, 3.5 min, 2.1 h."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def trainer_seconds(folder: Path) -> float | None:
    """How long a Trainer says in trainer_state.json that it trained; None where there is no such file."""
    try:
        history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        found = [float(entry["train_runtime"]) for entry in history if "train_runtime" in entry]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found[-1] if found else None


def _put(data: CardData, name: str, value: str | Sequence[str] | None) -> None:
    if value is None or value == [] or value == ():
        return
    if not isinstance(value, str):
        there = data.get(name) or []
        there = [there] if isinstance(there, str) else list(there)
        value = [*there, *(item for item in value if item not in there)]
    data[name] = value


def _put_results(data: ModelCardData, info: CardInfo, *, title: str, task: str | None) -> None:
    from huggingface_hub import EvalResult

    if task is None:
        raise InputError(
            f"results ({', '.join(info.results)}) belong to a task, which this network's head does not tell; "
            f"give it as the Hub calls it, task='image-classification'"
        )
    dataset = info.datasets[0]
    new = [
        EvalResult(
            task_type=task,
            dataset_type=dataset,
            dataset_name=dataset.rpartition("/")[2],
            dataset_split=info.split,
            metric_type=metric,
            metric_value=float(value),
        )
        for metric, value in info.results.items()
    ]
    old = [result for result in data.eval_results or [] if not any(result.is_equal_except_value(one) for one in new)]
    data.eval_results = old + new
    data.model_name = data.model_name or title
    data.metrics = list(dict.fromkeys([*(data.metrics or []), *info.results]))


def _with_part(text: str, *, title: str, part: str) -> str:
    """The text with its generated part replaced, or added behind what there is."""
    if BEGIN in text and END in text.partition(BEGIN)[2]:
        before, _, rest = text.partition(BEGIN)
        return f"{before}{part}{rest.partition(END)[2]}"
    if not text.strip():
        return f"\n# {title}\n\n{part}\n"
    return f"{text.rstrip()}\n\n{part}\n"
