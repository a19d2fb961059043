"""add_lora on every small network of the sweep: does all that trains get a gradient, move, and reach PEFT's copy?

python recipes/benchmarks/check_adapters.py [--families timm image ...] [--seconds 600]

Each network is adapted by default and with "all-linear", trained for one step, saved, and loaded by PEFT on a base
whose new weights (the head) were drawn with another seed. A run is kept with those before it in results/adapters.json,
so that a long sweep can be made in parts.

    right     every trained parameter has a gradient and moves, and PEFT's outputs are within 1e-5 of ours
    said      the same, but for what a warning names: layers that are not reached, or that PEFT reads past
    refused   add_lora or save_adapter ends in a sentence
    wrong     anything else
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from machine import RESULTS, keep
from sweep import FAMILIES, SECONDS, Specimen, specimens, time_limit
from torch import Tensor, nn

from hf_tl import InputError, LoraConfig, add_lora, save_adapter
from hf_tl.errors import in_one_line
from hf_tl.example import dummy_batch
from hf_tl.layers import head_names
from hf_tl.table import format_table
from hf_tl.trace import Batch, first_float, forward


Outcome = Literal["right", "said", "refused", "wrong", "not run"]
TARGETS = {"default": None, "all-linear": "all-linear"}
CLOSE = 1e-5


def check(specimen: Specimen, targets: str) -> tuple[Outcome, str]:
    """What becomes of an adapter on one network, and why."""
    try:
        model = specimen.model()
        batch = dummy_batch(model)
        with torch.no_grad():
            _output(model, batch)
    except Exception as error:  # of transformers or timm
        return "not run", in_one_line(error)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    new = [] if specimen.family == "causal" else list(head_names(model))  # words are not new to a language model
    try:
        with warnings.catch_warnings(record=True) as caught, tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("always")
            torch.manual_seed(0)
            try:
                add_lora(model, LoraConfig(r=4, target_modules=TARGETS[targets]))
            except InputError as error:
                return "refused", str(error)
            told = " ".join(str(one.message) for one in caught)
            problem = _still(model, batch, told) or _headless(specimen, model, new)
            if problem:
                return "wrong", problem
            with torch.no_grad():
                expected = _output(model.eval(), batch)
            try:
                save_adapter(model, folder)
            except InputError as error:
                return "refused", str(error)
            apart = _apart(specimen, folder, batch, expected, before=before, new=new, merged="PEFT leaves" in told)
    except TimeoutError:
        raise
    except Exception as error:  # a sentence would have been an InputError
        return "wrong", in_one_line(error)
    if not apart <= CLOSE:
        return "wrong", f"PEFT's copy differs by {apart:.2g}"
    named = "PEFT leaves" in told or "does not depend" in told
    return ("said", told) if named else ("right", "")


def _output(model: nn.Module, batch: Batch) -> Tensor:
    torch.manual_seed(0)  # some networks draw in evaluation too
    output = first_float(forward(model, batch))
    if output is None:
        raise InputError("the network returns no floating point tensor")
    return output


def _still(model: nn.Module, batch: Batch, told: str) -> str:
    """Which module neither moves in two steps nor is named in a warning; "" for none."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    start = {name: parameter.detach().clone() for name, parameter in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    reached: set[str] = set()
    model.train()
    for _ in range(2):  # A moves once B has
        output = _output(model, batch)
        torch.nn.functional.mse_loss(output, torch.randn_like(output)).backward()
        reached |= {name for name, parameter in trained.items() if parameter.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    modules: dict[str, list[str]] = {}
    for name in trained:
        modules.setdefault(re.split(r"\.lora_|\.modules_to_save\.", name)[0], []).append(name)
    for module, names in modules.items():
        moved = any(not torch.equal(start[name], trained[name]) for name in names)
        if not (moved and reached & {*names}) and not _named(module, told):
            return f"{module} has no gradient, or does not move"
    return ""


def _named(module: str, told: str) -> bool:
    """Whether a warning names a module, by itself or among those like it: "layers.0-3.query", "layers.*.query (4)"."""
    plain = module.replace(".base_layer", "")
    spot = r"\d[\d,-]*|\*"
    pattern = "".join(f"(?:{spot})" if part.isdigit() else re.escape(part) for part in re.split(r"(\d+)", plain))
    return re.search(rf"(?<![\w.]){pattern}(?![\w.])", told) is not None


def _headless(specimen: Specimen, model: nn.Module, new: Sequence[str]) -> str:
    whole = any(".modules_to_save." in name for name, _ in model.named_parameters())
    return "" if whole or specimen.family == "causal" else f"no head is trained; {list(new)} was expected"


def _apart(
    specimen: Specimen,
    folder: str,
    batch: Batch,
    expected: Tensor,
    *,
    before: dict[str, Tensor],
    new: Sequence[str],
    merged: bool,
) -> float:
    """The largest difference between our outputs and PEFT's, over the largest of them where that is above 1."""
    from peft import PeftModel

    other = specimen.model(seed=1)
    old = {n: t for n, t in before.items() if not n.startswith(tuple(f"{head}." for head in new))}
    other.load_state_dict(old, strict=False)
    theirs = PeftModel.from_pretrained(other, folder).eval()
    with torch.no_grad():
        found = _output(theirs.merge_and_unload() if merged else theirs, batch)
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def check_all(chosen: Sequence[Specimen], seconds: float) -> dict[str, dict[str, str]]:
    """Network -> targets -> outcome and why, for as many as the time allows."""
    results: dict[str, dict[str, str]] = {}
    stop = time.monotonic() + seconds
    for specimen in chosen:
        if time.monotonic() > stop:
            break
        found = {}
        for targets in TARGETS:
            try:
                with time_limit(4 * SECONDS):  # four passes and more, on a machine that may be busy
                    outcome, why = check(specimen, targets)
            except TimeoutError as error:
                outcome, why = "not run", str(error)
            found[targets] = f"{outcome}: {why[:300]}".rstrip(": ")
            if outcome == "wrong":
                print(f"{specimen} {targets}: {why[:300]}", flush=True)
            if outcome == "not run":
                break
        results[str(specimen)] = found
    return results


def count(results: dict[str, dict[str, str]]) -> dict[str, Counter[str]]:
    """Family and targets -> outcome -> how many."""
    counts: dict[str, Counter[str]] = {}
    for name, found in results.items():
        for targets, outcome in found.items():
            counts.setdefault(f"{name.partition('/')[0]}, {targets}", Counter())[outcome.partition(":")[0]] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--only", help="networks whose names hold this, which are checked again")
    options = parser.parse_args()
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    path = RESULTS / "adapters.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {}
    candidates = specimens(options.families)
    if options.only:
        todo = [one for one in candidates if options.only.lower() in str(one).lower()]
    else:
        todo = [one for one in candidates if str(one) not in results]
    random.Random(0).shuffle(todo)  # so that a part of the sweep is a sample of all
    stop = time.monotonic() + options.seconds
    for start in range(0, len(todo), 10):
        if time.monotonic() > stop:
            break
        results |= check_all(todo[start : start + 10], stop - time.monotonic())
        keep("adapters", {"results": dict(sorted(results.items()))})
    outcomes = ("right", "said", "refused", "wrong", "not run")
    counts = count(results)
    print(format_table(["networks", *outcomes], [[name, *(c[o] for o in outcomes)] for name, c in counts.items()]))
    sys.exit(any(c["wrong"] for c in counts.values()))


if __name__ == "__main__":
    main()
