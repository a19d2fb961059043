"""Do policies act on exactly the parameters that they name, on every kind of network that transformers and timm know?

    python recipes/benchmarks/check_policies.py [--families timm ...] [--only NAME ...] [--sample N] [--ledger FILE]

Each network of `sweep.py` is asked for its layers without an example. Then, one after the other and each time from the
same weights:

    freeze: ..50%    one step moves no parameter and no statistic that a frozen layer computes with, and all others
                     that a step without a policy moves
    tune: head       (or the last block) one step moves what it computes with, and nothing else
    reinit: -1       every tensor of the last block changes and no other one; where a new network has a constant, it is
                     that constant, and elsewhere the spread is that of a new network

In networks of several towers, `each ..50%` and `each -1`. What is tied to a named layer counts as its own, since that
is what it computes with. A network is right, or refused with a sentence, or wrong. With --ledger what was found is
kept in a file, and a run that is cut short goes on from there; the table is kept in results/ when no sample was asked.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from sweep import Specimen, run_sweep
from torch import Tensor, nn

from hf_tl import InputError, Policy, list_layers, select_layers
from hf_tl.architectures import is_transformers
from hf_tl.example import dummy_batch
from hf_tl.layers import Layers
from hf_tl.policies.applied import AppliedPolicy
from hf_tl.trace import Batch, forward


OUTCOMES = RIGHT, REFUSED, WRONG, NOT_RUN = "right", "refused", "wrong", "not run"
LARGE = 1024  # entries of a tensor before its spread says something
NEAR = (0.6, 1.6)  # times the spread of a new network


@dataclass(frozen=True)
class Finding:
    """What became of one network: `sentences` say what was refused or wrong, by what was asked of it."""

    outcome: str
    sentences: tuple[str, ...] = ()


def examine(specimen: Specimen) -> Finding:
    """Tries everything on one network."""
    try:
        model = specimen.model()
    except TimeoutError:
        raise
    except Exception as error:  # whatever a configuration objects to
        return Finding(NOT_RUN, (str(error)[:200],))
    refused, wrong = [], []
    try:
        layers, batch = list_layers(model), dummy_batch(model, n=1 if reads_one_text(model) else 2)
    except InputError as error:
        return Finding(REFUSED, (f"layers: {error}",))
    except Exception as error:
        return Finding(WRONG, (f"layers: {type(error).__name__}: {error}",))
    try:
        with as_it_was(model):
            moved_by_a_step(model, batch)
    except Exception as error:  # without a policy
        return Finding(NOT_RUN, (f"a step without a policy: {type(error).__name__}: {str(error)[:200]}",))
    each = "each " if len(layers.towers) > 1 else ""
    last = "head" if any(layer.kind == "head" and layer.owned for layer in layers) else f"{each}-1"
    for name, check, selection in (
        ("freeze", check_freeze, f"{each}..50%"),
        ("tune", check_tune, last),
        ("reinit", check_reinit, f"{each}-1"),
    ):
        try:
            with as_it_was(model):
                told = check(specimen, model, layers, batch, selection)
        except InputError as error:
            refused.append(f"{name}: {selection}: {str(error).splitlines()[0]}")
        except Exception as error:
            wrong.append(f"{name}: {selection}: {type(error).__name__}: {error}")
        else:
            wrong += [f"{name}: {selection}: {told}"] * bool(told)
    outcome = WRONG if wrong else REFUSED if refused else RIGHT
    return Finding(outcome, tuple(sentence[:300] for sentence in (*wrong, *refused)))


def reads_one_text(model: nn.Module) -> bool:
    """Whether a classifier of texts takes them one by one, as it knows no padding."""
    reads_text = is_transformers(model) and model.main_input_name == "input_ids"
    return reads_text and vars(model.config).get("pad_token_id") is None


def check_freeze(specimen: Specimen, model: nn.Module, layers: Layers, batch: Batch, selection: str) -> str:
    """What is wrong with `freeze`; "" for nothing."""
    frozen = tensors_of(model, layers, selection)
    with as_it_was(model):
        expected = moved_by_a_step(model, batch) - frozen
    start(model, layers, f"freeze: {selection}")
    before = copy_of(model)
    model.train()
    with torch.no_grad():
        forward(model, batch)
        drifted = frozen & changed(model, before)
        for name, tensor in distinct(model).items():  # with other statistics other units are dead
            tensor.copy_(before[name])
    found = moved_by_a_step(model, batch)
    return f"statistics of {sorted(drifted)[:3]} moved" if drifted else difference(found, expected)


def check_tune(specimen: Specimen, model: nn.Module, layers: Layers, batch: Batch, selection: str) -> str:
    """What is wrong with `tune`; "" for nothing."""
    named = tensors_of(model, layers, selection)
    with as_it_was(model):
        expected = moved_by_a_step(model, batch) & named
    start(model, layers, f"tune: {selection}")
    return difference(moved_by_a_step(model, batch), expected)


def check_reinit(specimen: Specimen, model: nn.Module, layers: Layers, batch: Batch, selection: str) -> str:
    """What is wrong with `reinit`; "" for nothing."""
    named = tensors_of(model, layers, selection)
    with torch.no_grad():  # so that a constant that is set again is seen to change
        for tensor in distinct(model).values():
            tensor += 0.37
    before = copy_of(model)
    start(model, layers, f"reinit: {selection}")
    found = changed(model, before)
    seen = {name for name, tensor in distinct(model).items() if tensor.numel() and tensor.isfinite().all()}
    if told := difference(found, named & seen):
        return told
    new, own = distinct(specimen.model(seed=1)), distinct(model)
    for name in sorted(found):
        fresh, here = new[name].float(), own[name].float()
        if fresh.unique().numel() == 1:
            if not torch.equal(fresh, here):
                return f"{name!r} is {here.flatten()[:3].tolist()}, and {fresh.flatten()[0].item()} in a new network"
        elif fresh.numel() >= LARGE and not NEAR[0] < here.std() / fresh.std() < NEAR[1]:
            return f"{name!r} spreads by {here.std():.3g}, and by {fresh.std():.3g} in a new network"
    return ""


def start(model: nn.Module, layers: Layers, text: str) -> None:
    """Puts a policy to work, as `Policy.apply` does, on layers that are known."""
    policy = Policy(text)
    applied = AppliedPolicy(model, layers, policy.plans(layers))
    applied.start()
    applied.advance()


def tensors_of(model: nn.Module, layers: Layers, selection: str) -> set[str]:
    """Names of what the selected layers compute with: all below their modules, and bare parameters that they own."""
    chosen = select_layers(layers, selection)
    held = {id(parameter) for layer in chosen for parameter in layer.owned}
    for module in (module for layer in chosen for _, module in layer.modules):
        held |= {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    return {name for name, tensor in distinct(model).items() if id(tensor) in held}


def distinct(model: nn.Module) -> dict[str, Tensor]:
    """Floating point parameters and buffers by name, each once."""
    every = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor for name, tensor in every if tensor.is_floating_point()}


def moved_by_a_step(model: nn.Module, batch: Batch) -> set[str]:
    """Names of the parameters that a step of gradient descent would move, in eval mode."""
    model.train().eval()  # LeViT keeps a graph as long as it is in eval mode
    model.zero_grad()
    with torch.enable_grad():
        sum_of_squares(forward(model, batch)).backward()
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is not None and parameter.grad.count_nonzero()
    }


def sum_of_squares(output: object) -> Tensor:
    """Of all floating point tensors in an output, in weights that differ from entry to entry."""
    if isinstance(output, Tensor):
        if not output.is_floating_point():
            return torch.zeros(())
        weights = 1 + torch.arange(output.numel(), dtype=output.dtype).remainder(7).reshape(output.shape)
        return (output.square() * weights).sum()
    items = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    return sum((sum_of_squares(item) for item in items), torch.zeros(()))


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in distinct(model).items()}


def changed(model: nn.Module, before: Mapping[str, Tensor]) -> set[str]:
    return {name for name, tensor in distinct(model).items() if not torch.equal(tensor, before[name])}


def difference(found: set[str], expected: set[str]) -> str:
    """What should not be there, what is missing; "" for nothing."""
    more, less = sorted(found - expected), sorted(expected - found)
    if more:
        return f"{len(more)} changed that are not named, such as {more[0]!r}"
    return f"{len(less)} stood still that are named, such as {less[0]!r}" if less else ""


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Values, hooks and flags of a network come back."""
    values, wants = copy_of(model), [parameter.requires_grad for parameter in model.parameters()]
    hooks = dict(model._forward_pre_hooks)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in distinct(model).items():
                tensor.copy_(values[name])
        for parameter, want in zip(model.parameters(), wants, strict=True):
            parameter.requires_grad_(want)
        model._forward_pre_hooks.clear()
        model._forward_pre_hooks.update(hooks)
        model.eval()
        model.zero_grad()


if __name__ == "__main__":
    sys.exit(run_sweep(examine, OUTCOMES, name="check_policies", doc=__doc__))
