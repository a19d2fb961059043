"""What kind of network or module something is: the only place that asks.

transformers and timm are not imported to say no.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeGuard, runtime_checkable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.pytorch_utils import Conv1D


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
QUANTISED = ("bitsandbytes int8", "bitsandbytes 4-bit", "torchao int8")
"""The layers of fewer bits whose weights can be read as numbers."""

_BITSANDBYTES = {
    "bitsandbytes.nn.modules.Linear8bitLt": "bitsandbytes int8",
    "bitsandbytes.nn.modules.Linear4bit": "bitsandbytes 4-bit",
    "bitsandbytes.nn.modules.Embedding8bit": "bitsandbytes Embedding8bit",
    "bitsandbytes.nn.modules.Embedding4bit": "bitsandbytes Embedding4bit",
}
_QUANTISERS = {  # the package of a layer's class, or the file of transformers' integrations
    "gptqmodel": "GPTQ",
    "auto_gptq": "GPTQ",
    "awq": "AWQ",
    "hqq": "HQQ",
    "eetq": "EETQ",
    "aqlm": "AQLM",
    "quanto": "Quanto",
    "vptq": "VPTQ",
    "spqr_quant": "SpQR",
    "higgs": "HIGGS",
    "bitnet": "BitNet",
    "fbgemm_fp8": "FBGEMM FP8",
    "finegrained_fp8": "FP8",
    "mxfp4": "MXFP4",
    "compressed_tensors": "compressed-tensors",
}
MODALITIES = {"pixel_values": "image", "input_ids": "text", "input_values": "audio", "input_features": "audio"}
"""What the inputs of transformers' networks hold."""

_PACKED = frozenset({"qweight", "W_q"})  # tensors of codes, as GPTQ, AWQ and HQQ call theirs


@runtime_checkable
class TimmNetwork(Protocol):
    """What timm's networks have in common, which have no base class."""

    num_classes: int

    def get_classifier(self) -> nn.Module | Sequence[nn.Module]:
        """The classifier; two of them in a distilled network."""

    def group_matcher(self, coarse: bool = False) -> Any:
        """How its parameters group into layers: regular expressions, or a function of the name."""


def is_transformers(model: object) -> TypeGuard[PreTrainedModel]:
    """True for a network of transformers."""
    return _is_a(model, "transformers.modeling_utils.PreTrainedModel")


def is_timm(model: object) -> TypeGuard[TimmNetwork]:
    """True for a network of timm, known by its methods."""
    return isinstance(model, TimmNetwork)


def find_networks(model: nn.Module) -> dict[str, nn.Module]:
    """The outermost networks of transformers and timm in a module by name; "" for the module itself."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(not outer or name.startswith(f"{outer}.") for outer in found)
        known = is_transformers(module) or is_timm(module)
        if known and not inside:
            found[name] = module
    return found


def timm_config(model: nn.Module) -> Mapping[str, Any]:
    """What timm knows of a network that it built ("architecture", "input_size", ...); empty for any other."""
    return vars(model).get("pretrained_cfg") or {}


def timm_groups(model: nn.Module) -> Mapping[str, Any] | Callable[[str], Any]:
    """How the parameters of a timm network group into layers: regular expressions, or a function of the name.

    Raises:
        TypeError: a network of another make.
    """
    if not is_timm(model):
        raise TypeError(f"{type(model).__name__} is no network of timm")
    return model.group_matcher(coarse=False)


def base_model(model: nn.Module) -> nn.Module:
    """A transformers network without its head; any other network, and one without a head, itself."""
    return model.base_model if is_transformers(model) and not is_bare(model) else model


def is_bare(model: nn.Module) -> bool:
    """True for a transformers network that AutoModel gives: DINOv3's has a part that is called as base models are."""
    from transformers import MODEL_MAPPING

    if not is_transformers(model) or not type(model).__name__.endswith("Model"):
        return False
    found = MODEL_MAPPING.get(type(model.config), ())
    return type(model) in (found if isinstance(found, tuple) else (found,))


def base_model_name(model: nn.Module) -> str:
    """The name under which the base model stands in a network; "" where it is the network itself."""
    base = base_model(model)
    return next((name for name, part in model.named_children() if part is base), "")


def classifiers(model: nn.Module) -> list[nn.Module]:
    """The modules that timm calls a network's classifier; [] for a network of another make."""
    if not is_timm(model):  # some of timm's have no groups of parameters, but say where the classifier is
        names = timm_config(model).get("classifier") or ()
        modules = dict(model.named_modules())
        return [modules[name] for name in ([names] if isinstance(names, str) else names) if name in modules]
    found = model.get_classifier()
    return [found] if isinstance(found, nn.Module) else list(found)


def main_input(model: PreTrainedModel) -> str:
    """The name of what a network of transformers reads: "pixel_values", "input_ids", ...

    Parts of networks inherit the name from a class that reads texts (OWL-ViT's image encoder); then it is that of the
    first input that they take.
    """
    takes = inspect.signature(model.forward).parameters
    if model.main_input_name in takes:
        return model.main_input_name
    return next((name for name in takes if name in MODALITIES), model.main_input_name)


def reads_videos(model: PreTrainedModel) -> bool:
    """True for a network of transformers whose samples are clips of several frames."""
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING

    kind = type(model.config)
    clips = kind in MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING or "num_frames" in model.config.to_dict()  # X-CLIP's part
    return clips and kind not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING


def task_of(model: object) -> str:
    """What a network is trained for, as the name of its class says: "token classification"; "" where it does not."""
    name = type(model).__name__
    if name.endswith("LMHeadModel"):
        return "causal LM"
    found = re.search(r"For([A-Z]\w*)$", name)
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*", found[1]) if found else []
    return " ".join(word if word.isupper() else word.lower() for word in words)


def find_output_embeddings(model: nn.Module) -> nn.Module | None:
    """The layer that turns the states of a language model into logits of tokens; None where there is none."""
    return model.get_output_embeddings() if is_transformers(model) else None


def without_adapter(module: nn.Module) -> nn.Module:
    """The layer that an adapter wraps, as PEFT does and `hf_tl.lora`; any other module itself."""
    return dict(module.named_children()).get("base_layer", module)


def is_convolution(module: nn.Module) -> bool:
    """True for convolutions over 1, 2 or 3 axes, transposed or not: channels are axis 1 of their output."""
    return isinstance(without_adapter(module), (*CONVOLUTIONS, *TRANSPOSED))


def unwrapped(module: nn.Module) -> nn.Module:
    """What torch.compile wrapped; any other module itself."""
    compiled = _is_a(module, "torch._dynamo.eval_frame.OptimizedModule")
    return dict(module.named_children())["_orig_mod"] if compiled else module


def inner_network(module: nn.Module) -> nn.Module:
    """What torch.compile, DataParallel and DistributedDataParallel wrapped, in any order; any other module itself.

    Of sentence-transformers' encoders it is the transformer, where that holds all the parameters.
    """
    while True:
        inner = unwrapped(module)
        if isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = inner.module
        if is_encoder_of_sentences(inner):
            found = list(find_networks(inner).values())
            inner = found[0] if [n_parameters(one) for one in found] == [n_parameters(inner)] else inner
        if inner is module:
            return module
        module = inner


def is_parallel(module: nn.Module) -> bool:
    """True for the wrappers in which torch spreads a network over processes or devices."""
    fsdp = "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel"
    return isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or _is_a(module, fsdp)


def is_encoder_of_sentences(model: nn.Module) -> bool:
    """True for all that sentence-transformers makes around a network, its cross-encoders too."""
    kinds = ("SentenceTransformer", "SparseEncoder", "CrossEncoder")
    return any(k.__name__ in kinds and k.__module__.startswith("sentence_transformers") for k in type(model).__mro__)


def is_container(module: nn.Module) -> bool:
    """True for a list or a dictionary of modules, which is never called itself."""
    return type(module).forward is nn.Module.forward


def is_conv1d(module: nn.Module) -> TypeGuard[Conv1D]:
    """True for GPT-2's `Conv1D`, a fully connected layer whose weight is (in_features, out_features)."""
    return _is_a(module, "transformers.pytorch_utils.Conv1D")


def is_fully_connected(module: nn.Module) -> bool:
    """True for linear layers, GPT-2's `Conv1D` among them: channels are the last axis of their output."""
    module = without_adapter(module)
    return isinstance(module, (nn.Linear, nn.Bilinear)) or is_conv1d(module)


def quantisation_of(module: nn.Module) -> str | None:
    """How a layer stores its weight in fewer bits: one of QUANTISED, the name of any other quantiser, or None.

    Layers of bitsandbytes and weights of torchao are known by their class, those of other quantisers by the package
    or by the names of their tensors.
    """
    for path, found in _BITSANDBYTES.items():
        if _is_a(module, path):
            return found
    weight = module._parameters.get("weight")
    if weight is not None and type(weight).__module__.startswith("torchao."):
        weight_only = type(weight).__name__ == "Int8Tensor" and vars(weight).get("act_quant_kwargs") is None
        return "torchao int8" if weight_only and isinstance(module, nn.Linear) else f"torchao {type(weight).__name__}"
    package = type(module).__module__.partition(".")[0]
    integration = type(module).__module__.removeprefix("transformers.integrations.").partition(".")[0]
    packed = {*module._buffers, *module._parameters} & _PACKED
    return _QUANTISERS.get(package) or _QUANTISERS.get(integration) or (type(module).__name__ if packed else None)


def is_sharded(tensor: torch.Tensor) -> bool:
    """True for a part of a tensor that FSDP2 or tensor parallelism has spread over processes."""
    return any(kind.__name__ == "DTensor" for kind in type(tensor).__mro__)


def is_partitioned(tensor: torch.Tensor) -> bool:
    """True for a parameter that DeepSpeed's ZeRO-3 has taken over."""
    return "ds_id" in vars(tensor)


def is_spread(model: nn.Module) -> bool:
    """Whether each process has a part of the network, by FSDP2 or tensor parallelism."""
    return any(map(is_sharded, model.parameters()))


def is_in_pieces(model: nn.Module) -> bool:
    """Whether each process has a part of the network, by FSDP2 or ZeRO-3."""
    return any(is_sharded(parameter) or is_partitioned(parameter) for parameter in model.parameters())


def offloaded_to_run_on(module: nn.Module) -> torch.device | None:
    """Where a layer runs whose weights accelerate keeps elsewhere and brings for each call; None for any other."""
    hook = vars(module).get("_hf_hook")
    inner = vars(hook).get("hooks", (hook,)) if hook is not None else ()
    for one in inner:
        if _is_a(one, "accelerate.hooks.AlignDevicesHook") and one.offload:
            return torch.device(one.execution_device)
    return None


def quantiser_of(model: nn.Module) -> str | None:
    """The method by which transformers loaded a network in fewer bits, such as "gptq"; None where it did not."""
    method = vars(model).get("quantization_method")  # an enum of strings
    return None if method is None else str(getattr(method, "value", method))


def is_linear(module: nn.Module) -> bool:
    """True for a convolution or a fully connected layer."""
    return is_convolution(module) or is_fully_connected(module)


def is_norm(module: nn.Module) -> bool:
    """True for a normalisation by itself, known by its class name, as there is no common base class."""
    return "norm" in type(module).__name__.lower() and not any(n_parameters(child) for child in module.children())


def has_running_statistics(module: nn.Module) -> bool:
    """True for a normalisation by statistics that move during training."""
    return isinstance(module, _NormBase) and module.running_mean is not None


def is_checkpointed(module: nn.Module) -> bool:
    """True for what transformers marks as a unit of gradient checkpointing."""
    return _is_a(module, "transformers.modeling_layers.GradientCheckpointingLayer")


def n_linear(module: nn.Module) -> int:
    """Number of convolutions and fully connected layers in it, itself included."""
    return sum(is_linear(inner) for inner in module.modules())


def n_parameters(module: nn.Module) -> int:
    """Number of scalars in its parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass(frozen=True)
class AutoClass:
    """One of transformers' loaders of networks.

    Attributes:
        name: the class.
        mapping: the table in transformers of the classes that it loads; "" for all.
        modality: what its networks read.
        pipeline: the task, as the Hub calls it.
        task_type: the task, as PEFT calls it; "" where it has no name for it.
        endings: of names of the classes that it loads, beside the ending of its own.
    """

    name: str
    mapping: str = ""
    modality: Literal["text", "image", "audio", ""] = ""
    pipeline: str | None = None
    task_type: str = ""
    endings: tuple[str, ...] = ()

    @property
    def has_labels(self) -> bool:
        """Whether its networks have an output for each of `num_labels` classes."""
        return self.name.endswith("Classification")

    def load(self) -> Any:
        """The class."""
        import transformers

        return getattr(transformers, self.name)

    def classes(self, config: PretrainedConfig) -> tuple[type, ...]:
        """What it would build from a configuration; empty where it cannot."""
        import transformers

        found = getattr(transformers, self.mapping).get(type(config), ()) if self.mapping else ()
        return found if isinstance(found, tuple) else (found,)


AUTO_CLASSES = (
    AutoClass(
        "AutoModelForSequenceClassification",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
        "text",
        "text-classification",
        "SEQ_CLS",
    ),
    AutoClass(
        "AutoModelForImageClassification",
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
        "image",
        "image-classification",
    ),
    AutoClass(
        "AutoModelForAudioClassification",
        "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING",
        "audio",
        "audio-classification",
    ),
    AutoClass(
        "AutoModelForTokenClassification",
        "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
        "text",
        "token-classification",
        "TOKEN_CLS",
    ),
    AutoClass(
        "AutoModelForQuestionAnswering",
        "MODEL_FOR_QUESTION_ANSWERING_MAPPING",
        "text",
        "question-answering",
        "QUESTION_ANS",
    ),
    AutoClass(
        "AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING", "text", "text-generation", "CAUSAL_LM", ("LMHeadModel",)
    ),
    AutoClass(
        "AutoModelForSeq2SeqLM",
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
        "text",
        None,
        "SEQ_2_SEQ_LM",
        ("ForConditionalGeneration",),
    ),
    AutoClass("AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING", "text", "fill-mask"),
    AutoClass("AutoModelForImageTextToText", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING", "image", "image-text-to-text"),
    AutoClass(
        "AutoModelForSpeechSeq2Seq", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING", "audio", "automatic-speech-recognition"
    ),
    AutoClass("AutoModelForCTC", "MODEL_FOR_CTC_MAPPING", "audio", "automatic-speech-recognition"),
    AutoClass("AutoModelForMultipleChoice", "MODEL_FOR_MULTIPLE_CHOICE_MAPPING", "text"),
    AutoClass(
        "AutoModelForSemanticSegmentation", "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING", "image", "image-segmentation"
    ),
    AutoClass("AutoModelForObjectDetection", "MODEL_FOR_OBJECT_DETECTION_MAPPING", "image", "object-detection"),
    AutoClass("AutoModel", task_type="FEATURE_EXTRACTION"),
)


def auto_class_for(
    config: PretrainedConfig, *, class_name: str | None = None, task_type: str | None = None
) -> AutoClass:
    """The loader of transformers that gives a class of this name for a network, or one for PEFT's name of a task.

    Args:
        config: the network's.
        class_name: such as "BertForSequenceClassification"; compared with what transformers lists, never looked up.
        task_type: such as "SEQ_CLS"; it goes before the name.

    Returns:
        The loader; that of the bare network where neither tells.
    """
    named = (auto for auto in AUTO_CLASSES if class_name in [kind.__name__ for kind in auto.classes(config)])
    return auto_class_of_task(task_type) or next(named, AUTO_CLASSES[-1])


def auto_class_of_task(task_type: str | None) -> AutoClass | None:
    """The loader for PEFT's name of a task, such as "SEQ_CLS"; None for another name."""
    return next((auto for auto in AUTO_CLASSES if auto.task_type and auto.task_type == task_type), None)


def auto_class_named(class_name: str) -> AutoClass | None:
    """The loader of classes whose names end like this one, "BertForMaskedLM"; None where the ending is not known."""
    for auto in AUTO_CLASSES:
        if class_name.endswith((auto.name.removeprefix("AutoModel"), *auto.endings)) and auto.mapping:
            return auto
    return AUTO_CLASSES[-1] if class_name.endswith("Model") else None


def classifiers_for(config: PretrainedConfig) -> Iterator[AutoClass]:
    """The loaders that give a network with this configuration a classifier of whole images, texts or recordings."""
    for auto in AUTO_CLASSES[:3]:
        if auto.classes(config):
            yield auto


def _is_a(thing: object, path: str) -> bool:
    """`isinstance` by the path of the class, which is not imported."""
    return any(f"{kind.__module__}.{kind.__qualname__}" == path for kind in type(thing).__mro__)
