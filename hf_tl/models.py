"""A name -> a pre-trained network and what turns raw inputs into its batches, for transformers and timm alike."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from hf_tl.acceleration import SAMPLES, Acceleration, measure_acceleration
from hf_tl.architectures import (
    AUTO_CLASSES,
    MODALITIES,
    AutoClass,
    auto_class_for,
    classifiers,
    classifiers_for,
    inner_network,
    is_encoder_of_sentences,
    is_transformers,
    main_input,
)
from hf_tl.errors import DummyInputError, InputError, in_one_line
from hf_tl.example import dummy_batch, dummy_inputs
from hf_tl.labels import PROBLEM_TYPES, Problem
from hf_tl.preparation import find_preparation
from hf_tl.trace import Batch, forward


if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

BARE = AUTO_CLASSES[-1]


@dataclass(frozen=True)
class Network:
    """A network with its preparation of inputs.

    Attributes:
        model: the network, without what torch.compile or DataParallel put around it, of sentence-transformers' the
            transformer; called with what `prepare` returns.
        prepare: a list of raw inputs (PIL images, strings, recordings, arrays) -> a batch: one tensor, or a mapping
            of tensors passed by keyword; the first dimension of every tensor is the batch.
        modality: what a raw input is: "image", "text", "audio" or "array".
        name: how the user called it.
        untrained: names of modules whose weights are not in the checkpoint and are therefore random.
        image_size: side of the square images that were asked for, in pixels; None for the size of pre-training.
        max_length: tokens of a text that are read, if a number was asked for.
        revision: branch, tag or commit that was asked for.
        processor: transformers' tokenizer, image processor or feature extractor, if `prepare` uses one.
        acceleration: the layout that `load_network` was asked for or found, and what it measured.
    """

    model: nn.Module
    prepare: Callable[[list], Batch]
    modality: str = "array"
    name: str = "network"
    untrained: frozenset[str] = frozenset()
    image_size: int | None = None
    max_length: int | None = None
    revision: str | None = None
    processor: Any = None
    acceleration: Acceleration | None = None

    def __post_init__(self) -> None:
        if is_encoder_of_sentences(self.model):  # whose own method tells itself what it has prepared
            object.__setattr__(self, "prepare", _TensorsOf(self.prepare))
        object.__setattr__(self, "model", inner_network(self.model))


@dataclass(frozen=True)
class _TensorsOf:
    """What prepares batches, without what is no tensor in them."""

    prepare: Callable[[list], Batch]

    def __call__(self, inputs: list) -> Batch:
        batch = self.prepare(inputs)
        if isinstance(batch, torch.Tensor):
            return batch
        return {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}


def load_network(
    name: str,
    *,
    classes: Sequence[str] | None = None,
    problem: Problem | None = None,
    image_size: int | None = None,
    max_length: int | None = None,
    revision: str | None = None,
    channels_last: bool | Literal["auto"] = False,
) -> Network:
    """Loads a pre-trained network and its preparation of inputs, in float32 and eval mode.

    With `classes` it is a classifier to be trained: one of transformers', so Trainer saves and resumes it; timm's
    networks come in transformers' wrapper. Without, it is the network as its library has it, for reading: no head of
    transformers', the encoder alone of an encoder-decoder, and the image encoder of CLIP and its like.

    Args:
        name: a Hub id ("timm/resnet50.a1_in1k", "google/vit-base-patch16-224"), a timm model name
            ("resnet50.a1_in1k"), a folder with a config.json and weights, "local-dir:FOLDER" or "hf-hub:ID".
        classes: names of two classes or more; the head has an output for each, with random weights unless the
            checkpoint's head has as many, and the same names in the same order where it has names.
        problem: what the head is to answer, which decides the loss of transformers' training: one of the classes,
            "multilabel" for several, or, without classes, "regression" for a number; None for what its configuration
            says.
        image_size: side of the square images in pixels; None for the size of pre-training.
        max_length: tokens of a text that are read, the rest is cut; None for as many as the network has positions
            for, 512 at most.
        revision: branch, tag or commit on the Hub.
        channels_last: whether the weights of convolutions are laid out with channels last, mostly faster on a CPU;
            "auto" where a few steps with noise show that, forward and backward where there are `classes`. Values stay
            the same but for rounding; `Network.acceleration` says in a line what was measured.

    Raises:
        InputError: no such model, one without a classifier, or one that this version cannot feed.
    """
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size must be at least 1 pixel, got {image_size}")
    if channels_last not in (True, False, "auto"):
        raise InputError(f"channels_last should be True, False or 'auto', got {channels_last!r}")
    files = _find_files(name, revision)
    untrained: frozenset[str] = frozenset()
    if problem == "regression" and classes is not None:
        raise InputError(f"a network that gives a number has no classes, got {list(classes)}")
    if classes is not None or problem == "regression":
        if classes is not None and len(classes) < 2:
            raise InputError(f"a classifier tells at least two classes apart, got {list(classes)}")
        numbered = dict(enumerate(["LABEL_0"] if classes is None else map(str, classes)))
        labels = {"id2label": numbered, "label2id": {label: number for number, label in numbered.items()}}
        kind = {} if problem is None else {"problem_type": PROBLEM_TYPES[problem]}
        config = _load_config(files, num_labels=len(numbered), **labels, **kind)
        auto = _classifier(files, config)
        model, untrained = _from_transformers(files, config, auto)
        trained = list((_load_config(files).id2label or {}).values())
        if trained != list(numbered.values()) and trained != [f"LABEL_{i}" for i in range(len(trained))]:
            model, untrained = _with_new_head(model, auto, untrained)  # its outputs mean other classes
    elif files.is_timm:
        resized = image_size is not None and (files.config.get("pretrained_cfg") or {}).get("fixed_input_size", False)
        model = _from_timm(files, **({"img_size": image_size} if resized else {}))
    else:
        config = _image_part(_load_config(files))
        model, untrained = _from_transformers(files, config, _loader(files, config))
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        else:  # of an encoder of texts beside images or sounds the latter, where AutoModel does not load it by itself
            parts = {part: module for part, module in model.named_children() if is_transformers(module)}
            other = parts.get("vision_model", parts.get("audio_model"))
            model = other if other is not None and "text_model" in parts else model
        _check_one_input(model, name)
    prepare, processor, modality = find_preparation(
        model, files.place, name=name, image_size=image_size, max_length=max_length, revision=revision
    )
    acceleration = None
    if channels_last == "auto":
        batch = prepare(dummy_inputs(modality, n=SAMPLES))
        acceleration = measure_acceleration(model, batch, train=classes is not None, bf16=False)
    elif channels_last:
        acceleration = Acceleration(channels_last=True, bf16=False)
    if acceleration is not None:
        acceleration.apply(model)
    return Network(
        model.eval(),
        prepare,
        modality=modality,
        name=name,
        untrained=untrained,
        image_size=image_size,
        max_length=max_length,
        revision=revision,
        processor=processor,
        acceleration=acceleration,
    )


def load_model(
    name: str,
    *,
    class_name: str | None = None,
    task_type: str | None = None,
    n_labels: int | None = None,
    wrapped: bool = False,
    dtype: torch.dtype | str = torch.float32,
) -> nn.Module:
    """Loads a pre-trained network with the head of a given task, without a preparation of inputs, in eval mode.

    A head that the checkpoint does not have is random, drawn from torch's generator.

    Args:
        name: as for `load_network`.
        class_name: of a transformers network, "BertForSequenceClassification", a choice among the classes that
            transformers lists for the network; None for that of the checkpoint.
        task_type: PEFT's name of a task, "SEQ_CLS", which goes before `class_name`.
        n_labels: outputs of a classifier; None for those of the checkpoint.
        wrapped: whether a timm network comes in transformers' wrapper.
        dtype: of the weights; "auto" for that of the checkpoint.

    Raises:
        InputError: no such network.
    """
    files = _find_files(name, None)
    if files.is_timm and not wrapped:
        return _from_timm(files, **({} if n_labels is None else {"num_classes": n_labels})).eval()
    config = _load_config(files)
    auto = auto_class_for(
        config, class_name=class_name or next(iter(config.architectures or ()), None), task_type=task_type
    )
    if n_labels is not None and auto.has_labels:
        config = _load_config(files, num_labels=n_labels)
    return _from_transformers(files, config, auto, dtype=dtype)[0].eval()


def load_processor(name: str, *, model: nn.Module) -> Any:
    """The tokenizer, image processor or feature extractor of a network; None for timm's, which keep it in config.json.

    Args:
        name: as for `load_network`.
        model: what it is for.

    Raises:
        InputError: no processor, or one that this version cannot use.
    """
    return find_preparation(model, _find_files(name, None).place, name=name)[1]


def find_modality(name: str, *, revision: str | None = None) -> str:
    """What the classifier of a network reads, "image", "text" or "audio", from its configuration alone.

    Args:
        name: as for `load_network`.
        revision: branch, tag or commit on the Hub.

    Raises:
        InputError: no such model, or one without a classifier.
    """
    files = _find_files(name, revision)
    return "image" if files.is_timm else _classifier(files, _load_config(files)).modality


@dataclass(frozen=True)
class _Files:
    """Where the files of a network are.

    Attributes:
        name: how the user called it.
        place: a folder, a Hub id, or timm's name of an architecture.
        config: what its config.json says.
        revision: branch, tag or commit on the Hub; None for main.
    """

    name: str
    place: str
    config: Mapping[str, Any]
    revision: str | None

    @property
    def is_timm(self) -> bool:
        return "model_type" not in self.config

    @property
    def timm_name(self) -> str:
        if os.path.isdir(self.place):
            return f"local-dir:{self.place}"
        if "/" not in self.place:
            return self.place
        return f"hf-hub:{self.place}" + (f"@{self.revision}" if self.revision is not None else "")

    @property
    def transformers_name(self) -> str:
        return f"timm/{self.place}" if self.is_timm and self.timm_name == self.place else self.place


def _find_files(name: str, revision: str | None) -> _Files:
    from timm import get_pretrained_cfg, is_model

    source, _, rest = name.partition(":")
    place = rest if source in ("local-dir", "hf-hub") and rest else name
    if os.path.isdir(place):
        config = _read_config(Path(place) / "config.json", place)
    elif source == "local-dir" or place.startswith((".", "~", os.sep)):
        raise InputError(f"model folder {place!r} does not exist; give a folder with a config.json, or a Hub id")
    elif "/" not in place and is_model(place):
        known = get_pretrained_cfg(place)
        config = {"architecture": place, "pretrained_cfg": known.to_dict() if known else {}}
    else:
        config = _hub_config(place, revision)
    if "model_type" not in config and "architecture" not in config:
        raise InputError(
            f"config.json of {name!r} has neither 'model_type' (transformers) nor 'architecture' (timm), but "
            f"{sorted(config)[:5]}; save the model with save_pretrained or timm.models.save_for_hf"
        )
    return _Files(name, place, config, revision)


def _load_config(files: _Files, **labels: Any) -> PretrainedConfig:
    from transformers import AutoConfig, TimmWrapperConfig

    try:
        config = AutoConfig.from_pretrained(files.transformers_name, revision=files.revision or "main", **labels)
    except Exception as error:  # a foreign config can fail transformers in any way
        raise InputError(f"transformers could not load {files.name!r}: {in_one_line(error)}") from error
    if labels and isinstance(config, TimmWrapperConfig):
        vars(config).pop("label_names", None)  # of the old head, and saved in place of the new names where they stay
        if config.model_args:
            config.model_args.pop("num_classes", None)  # likewise, and given twice
    return config


def _image_part(config: PretrainedConfig) -> PretrainedConfig:
    """Of an encoder of images beside one of text the former; of any other network all."""
    from transformers import MODEL_MAPPING

    if not _has_text_and_images(config):
        return config
    return config.vision_config if type(config.vision_config) in MODEL_MAPPING else config


def _has_text_and_images(config: PretrainedConfig) -> bool:
    """Whether a network encodes images beside texts, as CLIP does."""
    from transformers import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING

    return type(config) in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING and "vision_config" in config.sub_configs


def _classifier(files: _Files, config: PretrainedConfig) -> AutoClass:
    found = next(classifiers_for(config), None)
    if found is None:
        raise InputError(
            f"transformers has no classifier of images, text or audio for {files.name!r}, a model of type "
            f"{config.model_type!r}; choose one that has, or give Trainer a network of your own"
        )
    return found


def _loader(files: _Files, config: PretrainedConfig) -> AutoClass:
    """What loads a network to be read: AutoModel, or the loader of its class for what AutoModel does not know."""
    from transformers import MODEL_MAPPING

    if type(config) in MODEL_MAPPING:
        return BARE
    class_name = next(iter(config.architectures or ()), None)
    auto = auto_class_for(config, class_name=class_name)
    if auto is BARE:
        raise InputError(
            f"transformers has no loader for {files.name!r}, a model of type {config.model_type!r}; load it by its "
            f"class, {class_name}.from_pretrained, and give Network(model, prepare)"
        )
    return auto


def _check_one_input(model: PreTrainedModel, name: str) -> None:
    """Raises an InputError for a network that runs on images and texts together only, as ViLT does."""
    try:
        batch = dummy_batch(model)
    except DummyInputError:  # what it reads is not known
        return
    if not isinstance(batch, Mapping):
        return
    read, both = main_input(model), [key for key in batch if key in MODALITIES]
    if len(both) < 2 or read not in both:
        return
    try:
        with torch.no_grad():
            forward(model.eval(), {read: batch[read]})
    except Exception as error:  # of the network
        raise InputError(
            f"{name!r} ({type(model).__name__}) reads {' and '.join(both)} together, and a sample here is one of them "
            f"({in_one_line(error)}); give Network(model, prepare) whose prepare returns them all"
        ) from error


def _from_transformers(
    files: _Files, config: PretrainedConfig, auto: AutoClass, *, dtype: torch.dtype | str = torch.float32
) -> tuple[Any, frozenset[str]]:
    """The network, and the names of its modules that the checkpoint does not have or has in another size."""
    try:
        model, loading = auto.load().from_pretrained(
            files.transformers_name,
            revision=files.revision or "main",
            config=config,
            ignore_mismatched_sizes=auto.has_labels,
            dtype=dtype,
            output_loading_info=True,
        )
    except Exception as error:
        raise InputError(f"transformers could not load {files.name!r}: {in_one_line(error)}") from error
    new = [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
    return model, frozenset(key.rpartition(".")[0] for key in new)


def _with_new_head(model: Any, auto: AutoClass, untrained: frozenset[str]) -> tuple[Any, frozenset[str]]:
    """The network with its head drawn anew, and the names of its modules that are random."""
    from transformers import TimmWrapperForImageClassification

    if isinstance(model, TimmWrapperForImageClassification):
        model.timm_model.reset_classifier(model.config.num_labels)
        heads = {id(part) for part in classifiers(model.timm_model)}
        return model, untrained | {name for name, part in model.named_modules() if id(part) in heads}
    fresh = auto.load().from_config(model.config, dtype=model.dtype)
    fresh.base_model.load_state_dict(model.base_model.state_dict())
    head = {name for name, _ in fresh.named_parameters() if not name.startswith(f"{fresh.base_model_prefix}.")}
    return fresh.eval(), untrained | {name.rpartition(".")[0] for name in head}


def _from_timm(files: _Files, **options: Any) -> nn.Module:
    import timm

    try:
        return timm.create_model(files.timm_name, pretrained=True, **options)
    except Exception as error:  # a foreign config can fail timm in any way
        raise InputError(f"timm could not load {files.name!r}: {in_one_line(error)}") from error


def _hub_config(name: str, revision: str | None) -> dict:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import HF_HUB_OFFLINE

    try:
        return _read_config(Path(hf_hub_download(name, "config.json", revision=revision)), name)
    except (OSError, ValueError) as error:  # every error of the Hub is an OSError, of a malformed id a ValueError
        if isinstance(error, InputError):
            raise
        state = "the Hub is switched off by HF_HUB_OFFLINE=1" if HF_HUB_OFFLINE else "the Hub did not give it"
        raise InputError(
            f"model {name!r} is not a folder, not a timm model name and not in the local Hub cache, and {state}; "
            f"check the spelling, or download it first with: hf download {name}"
        ) from error


def _read_config(path: Path, name: str) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"folder {name!r} has no config.json; expected a saved transformers or timm model") from error
    except ValueError as error:
        raise InputError(f"config.json of {name!r} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"config.json of {name!r} should hold an object, got {type(config).__name__}")
    return config
