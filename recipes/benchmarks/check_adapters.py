"""add_lora on every small network of the sweep: does all that trains get a gradient, move, and reach PEFT's copy?

python recipes/benchmarks/check_adapters.py [--families timm image ...] [--seconds 600]

Each network is adapted by default and with "all-linear", trained for a few steps, saved, and loaded by PEFT on a base
whose new weights (the head) were drawn with another seed. Each has a process of its own, with limits of time and
memory. A run is kept with those before it in results/adapters.json, so that a long sweep can be made in parts.

    right      every trained parameter has a gradient and moves, and PEFT's outputs are within 1e-5 of ours
    said       the same, but for what a warning names: layers that are not reached, or that PEFT reads past
    refused    add_lora or save_adapter ends in a sentence
    wrong      anything else
    not built  it cannot be built small, does not run by itself, or takes too long
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import random
import re
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Literal, get_args

import torch
from machine import RESULTS, keep
from sweep import FAMILIES, N_LABELS, Specimen, specimens
from torch import Tensor, nn

from hf_tl import InputError, LoraConfig, add_lora, save_adapter
from hf_tl.errors import in_one_line
from hf_tl.example import dummy_batch
from hf_tl.layers import head_names
from hf_tl.lora.adapted import record_of
from hf_tl.table import format_table
from hf_tl.trace import Batch, first_float, forward


Outcome = Literal["right", "said", "refused", "wrong", "not built"]
TARGETS = {"default": None, "all-linear": "all-linear"}
CLOSE = 1e-5
STEPS = 4  # A moves once B has, and networks of wav2vec 2's kind skip a layer at random in a step
SECONDS = 60  # of the processor's time, for one network
MEMORY = 6 * 2**30  # bytes, likewise


def check(specimen: Specimen, targets: str) -> tuple[Outcome, str]:
    """What becomes of an adapter on one network, and why."""
    try:
        model = specimen.model()
        batch = dummy_batch(model)
        with torch.no_grad():
            _output(model, batch)
    except Exception as error:  # of transformers or timm
        return "not built", in_one_line(error)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        with warnings.catch_warnings(record=True) as caught, tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("always")
            torch.manual_seed(0)
            try:
                add_lora(model, LoraConfig(r=4, target_modules=TARGETS[targets]))
            except InputError as error:
                return "refused", str(error)
            told = " ".join(str(one.message) for one in caught)
            whole = [name for name, saved in record_of(model).saved.items() if any(saved.trains.values())]
            new = [*whole, *(head_names(model) if specimen.family != "causal" else ())]
            problem = _still(model, batch, told)
            if not whole and _has_head(model):
                problem = problem or f"no head is trained; {new} was expected"
            if problem:
                return "wrong", problem
            with torch.no_grad():
                expected = _output(model.eval(), batch)
            try:
                save_adapter(model, folder)
            except InputError as error:
                return "refused", str(error)
            if "PEFT cannot" in told:
                return "said", told
            apart = _apart(specimen, folder, batch, expected, before=before, new=new, merged="PEFT leaves" in told)
    except Exception as error:  # a sentence would have been an InputError
        outcome = "not built" if isinstance(error, MemoryError) or "allocate memory" in str(error) else "wrong"
        return outcome, in_one_line(error)
    if not apart <= CLOSE:
        return "wrong", f"PEFT's copy differs by {apart:.2g}"
    named = "PEFT leaves" in told or "does not depend" in told
    return ("said", told) if named else ("right", "")


def _has_head(model: nn.Module) -> bool:
    """Whether a layer has an output for each label: language models have none, nor has ShieldGemma2, built on one."""
    return any(p.ndim > 1 and len(p) == N_LABELS for p in model.parameters())


def _output(model: nn.Module, batch: Batch, *, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)  # some networks draw in evaluation too
    output = first_float(forward(model, batch))
    if output is None:
        raise InputError("the network returns no floating point tensor")
    return output


def _still(model: nn.Module, batch: Batch, told: str) -> str:
    """Which module neither moves in a few steps nor is named in a warning; "" for none."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    start = {name: parameter.detach().clone() for name, parameter in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    reached: set[str] = set()
    model.train()
    for seed in range(STEPS):
        output = _output(model, batch, seed=seed)
        torch.nn.functional.mse_loss(output, torch.randn_like(output)).backward()
        reached |= {name for name, parameter in trained.items() if parameter.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    layers = {  # a parameter's adapter stands in place of the module, and is told by the parameter's name
        id(parameter): name
        for name, layer in record_of(model).layers.items()
        for inside, parameter in layer.named_parameters()
        if not inside.startswith("base_layer.")
    }
    modules: dict[str, list[str]] = {}
    for name, parameter in trained.items():
        module = layers.get(id(parameter)) or name.partition(".modules_to_save.")[0]
        modules.setdefault(module, []).append(name)
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


def check_apart(specimen: Specimen) -> dict[str, str]:
    """Targets -> outcome and why, of a process of its own."""
    context = multiprocessing.get_context("fork")  # which has imported everything
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_check_and_send, args=(specimen, sender))
    process.start()
    sender.close()
    found: dict[str, str] = {}
    try:
        while receiver.poll(5 * SECONDS):  # of the clock's time, on a machine that may be busy
            targets, outcome, why = receiver.recv()
            found[targets] = f"{outcome}: {why[:300]}".rstrip(": ")
    except EOFError:  # it has ended
        pass
    else:
        process.kill()
    process.join()
    if process.exitcode != 0:
        found |= dict.fromkeys(TARGETS.keys() - found, f"not built: ended by its limits ({process.exitcode})")
    return found


def _check_and_send(specimen: Specimen, sender: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    for targets in TARGETS:
        outcome, why = check(specimen, targets)
        sender.send((targets, outcome, why))
        if outcome == "not built":
            break


def table(results: dict[str, dict[str, str]]) -> str:
    """Counts of networks by family and targets."""
    counts: dict[str, Counter[str]] = {}
    for name, found in results.items():
        for targets, outcome in found.items():
            counts.setdefault(f"{name.partition('/')[0]}, {targets}", Counter())[outcome.partition(":")[0]] += 1
    outcomes = get_args(Outcome)
    return format_table(["networks", *outcomes], [[name, *(c[o] for o in outcomes)] for name, c in counts.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--only", nargs="+", help="networks whose names hold one of these, which are checked again")
    options = parser.parse_args()
    import peft  # noqa: F401  # here, rather than in each process
    import transformers

    transformers.logging.set_verbosity_error()
    logging.getLogger("hf_tl").setLevel("WARNING")
    torch.set_num_threads(1)
    path = RESULTS / "adapters.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {}
    candidates = specimens(options.families)
    if options.only:
        todo = [one for one in candidates if any(part.lower() in str(one).lower() for part in options.only)]
    else:
        todo = [one for one in candidates if str(one) not in results]
    random.Random(0).shuffle(todo)  # so that a part of the sweep is a sample of all
    stop = time.monotonic() + options.seconds
    for i, specimen in enumerate(todo):
        if time.monotonic() > stop:
            break
        results[str(specimen)] = found = check_apart(specimen)
        for targets, outcome in found.items():
            if outcome.startswith("wrong"):
                print(f"{specimen} {targets}: {outcome}", flush=True)
        if i % 10 == 9 or specimen is todo[-1]:
            keep("adapters", {"results": dict(sorted(results.items()))})
    print(table(results))
    sys.exit(any(outcome.startswith("wrong") for found in results.values() for outcome in found.values()))


if __name__ == "__main__":
    main()
