"""Is every network read rightly, or refused in one sentence? The sweep of `sweep.py`, read sample by sample.

python recipes/benchmarks/check_reading.py [--families timm ...] [--only NAME ...] [--sample N]

right    what is read of each sample alone is what is read of it in a padded batch, within 1e-4 of the layer's largest
said     it is not, and a warning (and `describe`) says so
refused  an InputError: one sentence
wrong    anything else: other values without a word, or a traceback
"""

from __future__ import annotations

import argparse
import inspect
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from machine import keep
from sweep import FAMILIES, SECONDS, Specimen, sample, specimens, time_limit
from torch import Tensor, nn

from hf_tl import FullNetworkEmbedding, InputError, Network, list_layers
from hf_tl.example import dummy_batch
from hf_tl.table import format_table


N_SAMPLES = 3
SHORTER = (0, 3, 1)  # by how many eighths each sample is shorter than the longest
CLOSE = 1e-4
OUTCOMES = ("right", "said", "refused", "wrong")
Sample = dict[str, Tensor]


@dataclass(frozen=True)
class Verdict:
    """What came of reading one network.

    Attributes:
        family: of the network.
        name: of the network.
        outcome: one of OUTCOMES.
        reason: what was said or raised, or which layer is wrong by how much.
        n_taps: layers that were read.
    """

    family: str
    name: str
    outcome: str
    reason: str = ""
    n_taps: int = 0


def read(specimen: Specimen, model: nn.Module) -> Verdict:
    """Reads a network: its layers without an example, then three samples of different lengths together and alone."""
    try:
        list_layers(model)
        samples, prepare = inputs_of(model)
        network = Network(model, prepare, name=specimen.name)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            fne = FullNetworkEmbedding(network, recipe="raw", batch_size=N_SAMPLES, progress=False, num_workers=0)
            together = fne.fit_transform(samples)
            alone = fne.set_params(batch_size=1).transform(samples)
    except InputError as error:
        return Verdict(specimen.family, specimen.name, "refused", str(error))
    except TimeoutError:
        raise
    except Exception as error:
        return Verdict(specimen.family, specimen.name, "wrong", f"{type(error).__name__}: {error}".replace("\n", " "))
    errors = {layer.name: _error(together, alone, layer.start, layer.stop) for layer in together.layers}
    worst = max(errors, key=errors.__getitem__)
    leaks = [str(warning.message) for warning in said if "padding changes" in str(warning.message)]
    if errors[worst] <= CLOSE:
        outcome, reason = "right", ""
    elif leaks:
        outcome, reason = "said", leaks[0]
    else:
        outcome, reason = "wrong", f"{worst!r} differs by {errors[worst]:.1e} of its largest value"
    return Verdict(specimen.family, specimen.name, outcome, reason, len(errors))


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="networks of these names")
    parser.add_argument("--sample", type=int, metavar="N", help="that many at random, the same at every call")
    options = parser.parse_args()
    import transformers

    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    chosen = (
        specimens(options.families) if options.sample is None else sample(options.sample, families=options.families)
    )
    verdicts, not_built, start = [], [], time.perf_counter()
    for specimen in chosen:
        if options.only and specimen.name not in options.only:
            continue
        try:
            with time_limit(SECONDS):
                model = specimen.model()
        except Exception as error:
            not_built.append(f"{specimen}: {error}"[:200])
            continue
        try:
            with time_limit(SECONDS):
                verdicts.append(read(specimen, model))
        except TimeoutError as error:
            verdicts.append(Verdict(specimen.family, specimen.name, "refused", str(error)))
        if verdicts[-1].outcome != "right":
            print(f"{verdicts[-1].outcome}: {specimen}: {verdicts[-1].reason[:300]}", flush=True)
    print(table_of(verdicts, not_built, options.families))
    if not options.only and options.sample is None:
        found = [asdict(verdict) for verdict in verdicts if verdict.outcome != "right"]
        counts = dict(Counter(verdict.outcome for verdict in verdicts))
        seconds = round(time.perf_counter() - start)
        keep("reading_sweep", {"counts": counts, "not_built": not_built, "others": found, "seconds": seconds})
    return int(any(verdict.outcome == "wrong" for verdict in verdicts))


def table_of(verdicts: Sequence[Verdict], not_built: Sequence[str], families: Sequence[str]) -> str:
    """Counts of the outcomes by family."""
    rows = []
    for family in families:
        own = Counter(verdict.outcome for verdict in verdicts if verdict.family == family)
        missing = sum(one.startswith(f"{family}/") for one in not_built)
        rows.append([family, sum(own.values()), *(own[outcome] for outcome in OUTCOMES), missing])
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, len(OUTCOMES) + 3))])
    return format_table(["family", "built", *OUTCOMES, "not built"], rows)


def _cut(value: Tensor, eighths: int) -> Tensor:
    """The sample without some eighths of its length; its last token stays the last."""
    length = len(value) - eighths * len(value) // 8
    return torch.cat([value[: length - 1], value[-1:]])


def _error(together: np.ndarray, alone: np.ndarray, start: int, stop: int) -> float:
    a, b = (np.asarray(values)[:, start:stop] for values in (together, alone))
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


if __name__ == "__main__":
    sys.exit(main())
