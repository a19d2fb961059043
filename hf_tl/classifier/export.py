"""A classifier in one file for programs without hf_tl: ONNX, or a program of `torch.export`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hf_tl.errors import InputError, in_one_line
from hf_tl.example import dummy_inputs
from hf_tl.files import make_folder, writing_to
from hf_tl.trace import Batch


if TYPE_CHECKING:
    from hf_tl.classifier.classifier import Classifier

ENDINGS = (".onnx", ".pt2")
CLOSE = 1e-4  # of the logits, that another number of samples may be off
CLASSES = "class_names"  # their key in the metadata of an ONNX file


def export_classifier(classifier: Classifier, path: str | Path, *, inputs: Sequence[object] | None = None) -> Path:
    """Writes what `classifier.to_module()` does into one file, for any number of samples and any length.

    A file takes what `classifier.network.prepare(inputs)` returns and gives the calibrated logits, whose softmax is
    `predict_proba`.

    Args:
        classifier: any.
        path: ".onnx" for ONNX Runtime and its like: inputs have the names of the network's batch, "pixel_values" where
            that is one tensor, the output is "logits", and the metadata hold the class names as JSON. ".pt2" for
            `torch.export.load(path).module()`, which takes the tensors of the batch by position.
        inputs: raw ones to trace the network with; None for dummy inputs, which there are of images, texts and
            recordings.

    Raises:
        InputError: another ending, the extra is not installed, or a network that torch cannot export.
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise InputError(f"a classifier is exported to a {' or '.join(ENDINGS)} file, got {str(path)!r}")
    if path.suffix == ".onnx":
        try:
            import onnx  # noqa: F401  torch.onnx needs both
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise InputError(f"{path.name} is written by onnx and onnxscript: pip install 'hf-tl[onnx]'") from error
    network = classifier.network
    if inputs is None and network.modality == "array":
        raise InputError("a network that reads arrays has no dummy inputs; give some: export(path, inputs=[...])")
    raw = dummy_inputs(network.modality) if inputs is None else list(inputs)
    batches = [classifier.execution.placed(network.prepare(list(islice(cycle(raw), n)))) for n in (2, 3)]
    module = _ByPosition(classifier.to_module(), names=_names(batches[0])).eval()
    first, other = (_tensors(batch) for batch in batches)
    program = _program(module, first, arrays=network.modality == "array")
    with torch.inference_mode():
        off = float((program.module()(*other) - module(*other)).abs().max())
    if off > CLOSE:
        raise InputError(
            f"torch exported {network.name!r} to a program whose logits of {len(other[0])} samples are {off:.1e} off; "
            f"use classifier.to_module() itself"
        )
    make_folder(path.parent)
    with writing_to(path):
        if path.suffix == ".pt2":
            torch.export.save(program, path)
        else:
            _write_onnx(program, path, names=module.names, class_names=classifier.class_names)
    return path


class _ByPosition(nn.Module):
    """A module that takes the tensors of a batch by position: torch exports those of keywords not everywhere."""

    def __init__(self, module: nn.Module, *, names: tuple[str, ...] = ()):
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *tensors: Tensor) -> Tensor:
        """The tensors of a batch -> logits (n, n_outputs)."""
        return self.module(**dict(zip(self.names, tensors, strict=True))) if self.names else self.module(*tensors)


def _names(batch: Batch) -> tuple[str, ...]:
    """Of the tensors of a batch; empty where it is one tensor."""
    return () if isinstance(batch, Tensor) else tuple(batch)


def _tensors(batch: Batch) -> tuple[Tensor, ...]:
    return (batch,) if isinstance(batch, Tensor) else tuple(batch.values())


def _program(module: nn.Module, tensors: tuple[Tensor, ...], *, arrays: bool) -> torch.export.ExportedProgram:
    """A graph for any number of samples, and any length of tokens or recordings."""
    any_size = torch.export.Dim.DYNAMIC
    shapes = tuple(
        {0: any_size, 1: any_size}
        if tensor.ndim == 2 and not (arrays and tensor.is_floating_point())  # whose width is that of the first layer
        else {0: any_size}
        for tensor in tensors
    )
    try:
        return torch.export.export(module, tensors, dynamic_shapes={"tensors": shapes}, strict=False)
    except Exception as error:  # a foreign network can fail the tracer in any way
        raise InputError(f"torch cannot export this network: {in_one_line(error)}") from error


def _write_onnx(
    program: torch.export.ExportedProgram, path: Path, *, names: tuple[str, ...], class_names: Sequence[str]
) -> None:
    try:
        made = torch.onnx.export(
            program, input_names=names or ("pixel_values",), output_names=("logits",), dynamo=True, verbose=False
        )
    except Exception as error:  # likewise
        raise InputError(f"torch cannot convert this network to ONNX: {in_one_line(error)}") from error
    if made is None:  # torch says so of its older exporter alone
        raise InputError("torch converted nothing to ONNX")
    made.model.metadata_props[CLASSES] = json.dumps(list(class_names), ensure_ascii=False)
    made.save(path)
