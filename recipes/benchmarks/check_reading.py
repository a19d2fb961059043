"""Is every network read rightly, or refused in one sentence? The sweep of `sweep.py`, read sample by sample.

python recipes/benchmarks/check_reading.py [--families timm ...] [--only NAME ...] [--sample N] [--ledger FILE]

right    what is read of each sample alone is what is read of it in a padded batch, within 1e-4 of the layer's largest
said     it is not, and a warning (and `describe`) says so
refused  an InputError: one sentence
wrong    anything else: other values without a word, or a traceback
not run  what cannot be built small, or takes a minute

With --ledger what was found is kept in a file, and a sweep that is cut short goes on from there; the table is kept in
results/ when all of a family were read.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sweep import Specimen, run_sweep
from torch import Tensor, nn

from hf_tl import FullNetworkEmbedding, InputError, Network, list_layers
from hf_tl.example import dummy_batch


N_SAMPLES = 3
SHORTER = (0, 3, 1)  # by how many eighths each sample is shorter than the longest
CLOSE = 1e-4
OUTCOMES = ("right", "said", "refused", "wrong", "not run")
Sample = dict[str, Tensor]


@dataclass(frozen=True)
class Verdict:
    """What came of reading one network.

    Attributes:
        outcome: one of OUTCOMES.
        sentences: what was said or raised, or which layer is wrong by how much.
        n_layers: layers that were read.
    """

    outcome: str
    sentences: tuple[str, ...] = ()
    n_layers: int = 0


def examine(specimen: Specimen) -> Verdict:
    """Builds a network and reads it."""
    try:
        model = specimen.model()
    except TimeoutError:
        raise
    except Exception as error:  # whatever a configuration objects to
        return Verdict("not run", (str(error)[:200],))
    return read(model, name=specimen.name)


def read(model: nn.Module, *, name: str) -> Verdict:
    """Reads a network: its layers without an example, then three samples of different lengths together and alone."""
    try:
        list_layers(model)
        samples, prepare = inputs_of(model)
        network = Network(model, prepare, name=name)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            fne = FullNetworkEmbedding(network, recipe="raw", batch_size=N_SAMPLES, progress=False, num_workers=0)
            together = fne.fit_transform(samples)
            alone = fne.set_params(batch_size=1).transform(samples)
    except InputError as error:
        return Verdict("refused", (str(error)[:400],))
    except TimeoutError:
        raise
    except Exception as error:
        return Verdict("wrong", (f"{type(error).__name__}: {error}".replace("\n", " ")[:400],))
    errors = {layer.name: _error(together, alone, layer.start, layer.stop) for layer in together.layers}
    worst = max(errors, key=errors.__getitem__)
    leaks = [str(warning.message)[:400] for warning in said if "padding changes" in str(warning.message)]
    if errors[worst] <= CLOSE:
        return Verdict("right", n_layers=len(errors))
    if leaks:
        return Verdict("said", tuple(leaks[:1]), len(errors))
    return Verdict("wrong", (f"{worst!r} differs by {errors[worst]:.1e} of its largest value",), len(errors))


def inputs_of(model: nn.Module) -> tuple[list[Sample], Callable[[list[Sample]], Sample | Tensor]]:
    """Three samples, of different lengths where the network takes a mask, and what makes a padded batch of them."""
    whole = dummy_batch(model, n=N_SAMPLES)
    if isinstance(whole, Tensor):
        return [{"x": row} for row in whole], lambda batch: torch.stack([one["x"] for one in batch])
    samples = [{key: value[i] for key, value in whole.items()} for i in range(N_SAMPLES)]
    main = next((key for key in ("input_ids", "input_values") if key in whole and whole[key].ndim == 2), None)
    if main is None or len(whole) > 1 or "attention_mask" not in inspect.signature(model.forward).parameters:
        return samples, lambda batch: {key: torch.stack([one[key] for one in batch]) for key in batch[0]}
    text = model.config.get_text_config()
    if main == "input_ids" and text.to_dict().get("pad_token_id") is None:
        model.config.pad_token_id = text.pad_token_id = 0  # by which classifiers find the last token of a text
    cut = [_cut(one[main], eighths) for one, eighths in zip(samples, SHORTER, strict=True)]
    filling = text.to_dict().get("pad_token_id") or 0

    def prepare(batch: list[Sample]) -> Sample:
        values = [one[main] for one in batch]
        padded = nn.utils.rnn.pad_sequence(
            values, batch_first=True, padding_value=filling if main == "input_ids" else 0
        )
        lengths = torch.tensor([len(value) for value in values])
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        return {main: padded, "attention_mask": mask.long()}

    return [{main: value} for value in cut], prepare


def _cut(value: Tensor, eighths: int) -> Tensor:
    """The sample without some eighths of its length; its last token stays the last."""
    length = len(value) - eighths * len(value) // 8
    return torch.cat([value[: length - 1], value[-1:]])


def _error(together: np.ndarray, alone: np.ndarray, start: int, stop: int) -> float:
    a, b = (np.asarray(values)[:, start:stop] for values in (together, alone))
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


if __name__ == "__main__":
    sys.exit(run_sweep(examine, OUTCOMES, name="check_reading", doc=__doc__))
