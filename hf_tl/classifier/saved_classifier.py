"""A classifier as files: JSON, safetensors and a model card in one folder, here or on the Hub.

The files may come from elsewhere: they are data and nothing else. No name found in them is imported, no code of theirs
runs, and a network is built by transformers or timm from the architectures that they know.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from hf_tl.architectures import base_model_name, classifiers, is_transformers
from hf_tl.card import CardInfo, data_sentence, results_table, write_card
from hf_tl.checkpoint import can_reload, save_network
from hf_tl.classifier.calibration import Calibration
from hf_tl.classifier.scorer import EmbeddingScorer, LinearHead, NetworkScorer, Scorer, logits_of
from hf_tl.classifier.target import EACH, Target
from hf_tl.classifier.training_record import TrainingRecord
from hf_tl.embedding.batches import Execution
from hf_tl.embedding.full_network import FullNetworkEmbedding
from hf_tl.embedding.pretrained import public_name, write_fitted
from hf_tl.embedding.store import read_tensors
from hf_tl.errors import InputError, in_one_line
from hf_tl.example import dummy_batch
from hf_tl.files import leads_out, make_folder, read_untrusted, write_json, write_whole
from hf_tl.hub import CARD, PushResult, check_repo_id, is_hub_id, is_hub_name, pull_files, push_files
from hf_tl.labels import Problem
from hf_tl.models import Network, load_network
from hf_tl.probes.evaluation import scores_in_words
from hf_tl.trace import evaluating, forward


if TYPE_CHECKING:
    from hf_tl.classifier.classifier import Classifier

FORMAT = "hf_tl classifier 1"
CONFIG, HEAD, NETWORK = "classifier.json", "head.safetensors", "network"
LARGEST = 2**24  # bytes of a JSON file
CLOSE = 1e-4  # of the logits, that a temperature in the head's weights gives
PULLED = [
    f"{folder}{kind}"
    for folder in ("", f"{NETWORK}/")
    for kind in ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
]
TASKS = {"image": "image-classification", "text": "text-classification", "audio": "audio-classification"}


@dataclass(frozen=True)
class Said:
    """What classifier.json says beside the scorer.

    Attributes:
        class_names: of the logits; empty for a number.
        calibration: of the logits.
        record: of the training.
        problem: see `Classifier`.
    """

    class_names: tuple[str, ...]
    calibration: Calibration
    record: TrainingRecord
    problem: Problem

    @property
    def target(self) -> Target:
        """What is answered."""
        return Target(self.problem, self.class_names)


def save_classifier(classifier: Classifier, folder: str | Path, *, with_network: bool = True) -> Path:
    """See `Classifier.save_pretrained`."""
    folder = Path(folder)
    _write_files(classifier, folder, with_network=with_network, name=classifier.network.name)
    write_whole(folder / CARD, _card(classifier, CardInfo()))
    return folder


def push_classifier(
    classifier: Classifier,
    repo_id: str,
    *,
    with_network: bool = True,
    info: CardInfo | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Add classifier",
    token: str | None = None,
    dry_run: bool = False,
) -> PushResult:
    """Puts a classifier on the Hub: what `save_pretrained` writes, in one commit.

    Args:
        classifier: any.
        repo_id: "user/name"; a model repository that is made where there is none.
        with_network: whether a frozen network is in it; else its name is enough to load it again.
        info: datasets, results, licence: what the card says and no file knows.
        private: whether a repository that is made is private; None for the default of its owner.
        revision: the branch, which is made where there is none; None for main.
        message: of the commit.
        token: None for HF_TOKEN or what `hf auth login` stored. It is never written and never printed.
        dry_run: whether to say what would be pushed, and send nothing.

    Raises:
        InputError: a network that no file can hold; or whatever the Hub objects to.
    """
    check_repo_id(repo_id)
    info = info or CardInfo()
    if info.datasets and not info.results:
        info = replace(info, results=classifier.record.scores)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _write_files(classifier, folder, with_network=with_network, name=public_name(classifier.network.name))
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        return push_files(
            files,
            repo_id,
            card=lambda there: _card(classifier, info, repo_id=repo_id, old=there),
            message=message,
            private=private,
            revision=revision,
            token=token,
            dry_run=dry_run,
        )


def read_classifier(
    name: str | Path,
    *,
    network: Network | None = None,
    revision: str | None = None,
    token: str | None = None,
    execution: Execution | None = None,
) -> tuple[Said, Scorer]:
    """What `save_classifier` or `push_classifier` wrote.

    Args:
        name: a folder, or a Hub id.
        network: what is read, where no file holds it.
        revision: branch, tag or commit on the Hub.
        token: None for HF_TOKEN or what `hf auth login` stored.
        execution: how samples go through the network.

    Raises:
        InputError: no classifier there, damaged files, another network.
    """
    folder = Path(name)
    if not folder.exists() and is_hub_id(str(name)):
        folder = pull_files(str(name), PULLED, revision=revision, token=token)
    elif revision is not None:
        raise InputError(f"revision={revision!r} is of a repository, but {str(name)!r} is a folder here")
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{str(name)!r} holds no {CONFIG}; give a folder that `hf-tl fit` or save_pretrained wrote, or a Hub id"
        )
    try:
        said = json.loads(read_untrusted(folder / CONFIG, largest=LARGEST))
        if said["format"] != FORMAT:
            raise ValueError(f"format should be {FORMAT!r}, got {said['format']!r}")
        kind, max_length, found = said["kind"], said["max_length"], _said(said)
        if kind not in ("embedding", "network") or not isinstance(max_length, int | None):
            raise ValueError(f"kind should be 'embedding' or 'network', got {kind!r}")
    except InputError:
        raise
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"the classifier in {str(name)!r} is damaged: {in_one_line(error)}") from error
    place = folder / NETWORK if kind == "embedding" else folder
    if network is None and (place / "config.json").is_file():
        network = _load_network(place, found if kind == "network" else None, max_length, root=folder)
    if kind == "network":
        if network is None:
            raise InputError(f"the classifier in {str(name)!r} lacks its network's config.json; copy the folder again")
        return found, NetworkScorer(network, execution or Execution())
    try:
        embedding = FullNetworkEmbedding.from_pretrained(str(folder), network=network)
    except InputError as error:
        hint = "" if network is not None else "; the network is not in the folder: give it with network=..."
        raise InputError(f"{error}{hint}") from error
    if execution is not None:
        if execution.dtype_name != embedding.dtype_name:
            raise InputError(
                f"the classifier in {str(name)!r} was fitted on features in {embedding.dtype_name}; "
                f"execution should keep that, got dtype={execution.dtype_name!r}"
            )
        embedding.set_params(**{field.name: vars(execution)[field.name] for field in fields(Execution)})
    return found, EmbeddingScorer(embedding, _read_head(folder, (found.target.n_outputs, embedding.n_features_)))


def _said(said: Mapping) -> Said:
    names, calibration, record = said["class_names"], said["calibration"], said["record"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names should be a list of names, got {names!r}")
    problem = said["problem"]
    if problem not in EACH:
        raise ValueError(f"problem should be one of {', '.join(EACH)}, got {problem!r}")
    Target(problem, tuple(names))  # which refuses names that do not go with it
    temperature = float(calibration["temperature"])
    if not 0 < temperature < math.inf:
        raise ValueError(f"the temperature should be above 0, got {temperature}")
    before, after = (None if calibration[key] is None else float(calibration[key]) for key in ("before", "after"))
    return Said(
        tuple(names),
        Calibration(temperature, str(calibration["how"]), before, after),
        TrainingRecord(
            str(record["method"]),
            {str(key): value if isinstance(value, int) else str(value) for key, value in record["data"].items()},
            {str(key): float(value) for key, value in record["scores"].items()},
            str(record["scored_on"]),
            tuple(str(column) for column in record["columns"]),
            None if record.get("interval") is None else _pair(record["interval"]),
        ),
        problem,
    )


def _pair(values: Sequence) -> tuple[float, float]:
    low, high = map(float, values)
    return low, high


def _load_network(folder: Path, said: Said | None, max_length: int | None, *, root: Path) -> Network:
    """The network in a folder, built from safetensors alone.

    Raises:
        InputError: weights of another format, links that lead out, code that wants to be run, a head without weights.
    """
    weights = [*folder.glob("*.safetensors")]
    weights = [path for path in weights if path.name != HEAD]
    if not weights:
        raise InputError(f"{str(folder)!r} has no weights as .safetensors, and hf_tl reads no other format")
    for path in (*folder.glob("*.json"), *weights):
        if leads_out(path, root=root):
            raise InputError(f"{str(path)!r} is a link out of its folder; copy the file itself")
    try:
        configs = [json.loads(read_untrusted(path, largest=LARGEST)) for path in folder.glob("*config*.json")]
    except (OSError, ValueError) as error:
        raise InputError(f"the classifier's network in {str(folder)!r} is damaged: {in_one_line(error)}") from error
    if any("auto_map" in config or "custom_pipelines" in config for config in configs if isinstance(config, dict)):
        raise InputError(f"the network in {str(folder)!r} brings code of its own (auto_map), which hf_tl does not run")
    own = any(isinstance(config, dict) and "model_type" in config for config in configs)
    if said is None or not own:
        network = load_network(str(folder), max_length=max_length)
    else:
        network = load_network(
            str(folder), classes=said.class_names or None, problem=said.problem, max_length=max_length
        )
    if said is not None and network.untrained:
        raise InputError(
            f"the network in {str(folder)!r} has no weights for {sorted(network.untrained)[:3]}; copy the folder again"
        )
    return network


def _read_head(folder: Path, shape: tuple[int, int]) -> LinearHead:
    tensors = read_tensors(folder / HEAD)
    coef, intercept = tensors.get("coef"), tensors.get("intercept")
    if coef is None or intercept is None or coef.shape != shape or intercept.shape != shape[:1]:
        raise InputError(
            f"the head in {str(folder)!r} should hold coef {shape} and intercept {shape[:1]}, "
            f"got { {name: value.shape for name, value in tensors.items()} }; copy the folder again"
        )
    if not (np.isfinite(coef).all() and np.isfinite(intercept).all()):
        raise InputError(f"the head in {str(folder)!r} holds NaN or infinity; fit it again")
    return LinearHead(coef.astype(np.float32), intercept.astype(np.float32))


def _write_files(classifier: Classifier, folder: Path, *, with_network: bool, name: str) -> None:
    from safetensors.numpy import save

    scorer, calibration, network = classifier.scorer, classifier.calibration, classifier.network
    make_folder(folder)
    if isinstance(scorer, EmbeddingScorer):
        kind = "embedding"
        write_fitted(scorer.embedding, folder, name=name)
        write_whole(folder / HEAD, save({"coef": scorer.head.coef, "intercept": scorer.head.intercept}))
        if with_network and can_reload(network.model):
            save_network(network, folder / NETWORK)
    else:
        kind = "network"
        state = None
        if calibration.temperature != 1:
            state = _with_temperature(network.model, calibration.temperature)
        if state is not None:
            calibration = Calibration(1.0, f"{calibration}; it is in the weights of the head")
        save_network(network, folder, state_dict=state, class_names=classifier.class_names)
    said = {
        "format": FORMAT,
        "kind": kind,
        "problem": classifier.problem,
        "class_names": list(classifier.class_names),
        "modality": network.modality,
        "network": name,
        "max_length": network.max_length,
        "calibration": asdict(calibration),
        "record": asdict(classifier.record),
    }
    write_json(folder / CONFIG, said)


def _with_temperature(model: nn.Module, temperature: float) -> dict[str, Tensor] | None:
    """The weights with a temperature in those of the head; None where the head's last layers are not found.

    Softmax(W h + b) at temperature T is softmax((W / T) h + b / T): so a library that knows of no temperature answers
    alike.
    """
    timm = dict(model.named_modules()).get("timm_model", model)
    last = {id(layer) for part in classifiers(timm) for layer in part.modules() if isinstance(layer, nn.Linear)}
    if not last and is_transformers(model):
        base = base_model_name(model)
        last = {
            id(layer)
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear)
            and layer.out_features == model.config.num_labels
            and not name.startswith(f"{base}.")
        }
    names = {name for name, layer in model.named_modules() if id(layer) in last}
    state = dict(model.state_dict())
    changed = {key: value / temperature for key, value in state.items() if key.rpartition(".")[0] in names}
    batch = dummy_batch(model)
    with evaluating(model), torch.no_grad():
        wanted = logits_of(forward(model, batch)) / temperature
        called = ((), dict(batch)) if isinstance(batch, Mapping) else ((batch,), {})
        got = logits_of(torch.func.functional_call(model, changed, *called, tie_weights=False))
    return state | changed if torch.allclose(got, wanted, rtol=CLOSE, atol=CLOSE) else None


def _card(classifier: Classifier, info: CardInfo, *, repo_id: str | None = None, old: str | None = None) -> str:
    record, network, place = classifier.record, classifier.network, repo_id or "PATH_OR_HUB_ID_OF_THIS"
    named = network.name if is_hub_name(network.name) else None
    names, problem = classifier.class_names, classifier.problem
    task = TASKS.get(network.modality) if problem != "regression" else None  # the Hub has no task of such a name
    about = {
        "classification": f"Tells {len(names)} classes of {network.modality}s apart: {', '.join(names)}.",
        "multilabel": f"Says which of {len(names)} classes {network.modality}s have: {', '.join(names)}.",
        "regression": f"Gives a number for each {network.modality}.",
    }
    lines = [about[problem], ""]
    lines += [f"{record.method[:1].upper()}{record.method[1:]}."] if record.method else []
    if record.data:
        lines.append(f"Trained on {record.data['n_samples']} samples, whose digest is `{record.data['digest']}`.")
    if record.scores:
        lines.append(f"On {record.scored_on}: {scores_in_words(record.scores, record.interval)}.")
    lines += [] if problem == "regression" else [f"Its probabilities: {classifier.calibration}."]
    answers = "" if problem == "regression" else ", classifier.predict_proba(inputs)"
    use = f"""\
## How to use it

```python
from hf_tl import Classifier

classifier = Classifier.from_pretrained("{place}")
classifier.predict(inputs){answers}
```

```bash
hf-tl predict {place} INPUTS --out predictions.csv
```
"""
    if isinstance(classifier.scorer, NetworkScorer) and is_transformers(network.model) and task:
        use += f'\nOr, without hf_tl: `transformers.pipeline("{task}", model="{place}")`.\n'
    return write_card(
        old,
        title=f"A {'regression on' if problem == 'regression' else 'classifier of'} {network.modality}s",
        body="\n".join([*lines, data_sentence(info), results_table(info) + use]),
        info=info,
        metadata={"library_name": "hf_tl", "base_model": named, "tags": ("transfer-learning", "hf_tl-classifier")},
        task=task,
    )
