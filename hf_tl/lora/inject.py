"""add_lora: a network with adapters, the same object changed in place; adapted.py says what it leaves there.

`inject(model, plan, adapter_name=NAME)` is the lower half: it puts adapters where a `Plan` says, whatever chose the
places, so that a loader can follow the keys it found (`empty=True` skips the initialisation of values that a
checkpoint is about to give).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hf_tl.architectures import (
    CONVOLUTIONS,
    is_encoder_of_sentences,
    is_fully_connected,
    is_transformers,
    offloaded_to_run_on,
)
from hf_tl.errors import InputError, in_one_line, inform
from hf_tl.example import dummy_batch
from hf_tl.lora.adapted import (
    RECORD,
    AdapterRecord,
    base_modules,
    check_new_name,
    disable_adapters,
    find_network,
    record_of,
    set_adapter,
)
from hf_tl.lora.adapter_plan import Plan, plan_adapter
from hf_tl.lora.attention import LoraAttention
from hf_tl.lora.config import LoraConfig
from hf_tl.lora.convolution import LoraConv
from hf_tl.lora.embedding_table import LoraEmbedding
from hf_tl.lora.initialise import initialise
from hf_tl.lora.layer import LoraLayer, SavedModule
from hf_tl.lora.linear import LoraLinear, computes_otherwise
from hf_tl.lora.merge import delete_adapter
from hf_tl.lora.parameter import LoraParameter
from hf_tl.lora.quantised import check_quantised, codes_as_they_are
from hf_tl.lora.targets import Target
from hf_tl.lora.token_rows import TokenRows
from hf_tl.names import in_runs, is_inside, listed
from hf_tl.trace import Batch, evaluating, forward


_PEFT_HAS = frozenset({"bias", "in_features", "out_features"})  # beside `weight`, as attributes of its layers
_MOST = 8  # of anything, in the line that says what was done
KINDS = "nn.Linear, Conv1D of transformers, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.MultiheadAttention"


def add_lora(
    model: nn.Module,
    config: LoraConfig,
    *,
    adapter_name: str = "default",
    example: Batch | None = None,
    running_statistics: Literal["save", "freeze", "ignore"] = "save",
) -> nn.Module:
    """Puts a new adapter on the network, changed in place, and makes it the one that runs and trains.

    Everything else is frozen, but for the biases and `modules_to_save` of the config. The output stays what it
    was, except with the init "random".

    Args:
        model: any network; transformers' and timm's classifiers have their head found and trained in full.
        config: what to adapt and how.
        adapter_name: its name.
        example: a batch for a network of your own making, whose head and layers are then found by tracing it; and for
            one that runs on no dummy input, where the line that says what was done says so.
        running_statistics: what becomes of the means and variances that batch normalisations collect in
            training: "save" them with the adapter, "freeze" them at those of the frozen network, or "ignore" that
            they move and are lost, as PEFT does.

    Returns:
        the same model.

    Raises:
        InputError: the config chooses no module, or one of a kind that cannot be adapted, or the network does not run
            on the example. The network is then what it was.
    """
    network = find_network(model)
    check_quantised(network)
    if example is not None:
        _check_example(network, example)
    with codes_as_they_are(network):
        plan = plan_adapter(network, config, example=example, running_statistics=running_statistics)
    batches = _dummy_batches(network) if example is None else [example]
    inject(network, plan, adapter_name=adapter_name)
    note_container(model)
    with _probed(network) as probes:
        output = _output(network, batches)
    if output is not None:
        _check_reach(network, adapter_name, output, probes)
    elif batches:
        _check_runs(network, adapter_name, batches, ran=example is not None)
    _announce(network, adapter_name, looked=output is not None)
    return model


def _dummy_batches(network: nn.Module) -> list[Batch]:
    """Of one sample, and of two for networks that read several rows a sample; [] where it tells not what it reads."""
    try:
        return [dummy_batch(network, n=n) for n in (1, 2)]
    except InputError:
        return []


def _check_example(network: nn.Module, example: Batch) -> None:
    try:
        with evaluating(network), codes_as_they_are(network), torch.no_grad(), torch.random.fork_rng():
            forward(network, example)
    except Exception as error:  # whatever the network objects to
        raise InputError(f"the network does not run on example=...: {in_one_line(error)}") from error


def _output(network: nn.Module, batches: Sequence[Batch]) -> object:
    """What the network gives for the first batch that it runs on; None where it runs on none."""
    for batch in batches:
        for layer in record_of(network).layers.values():
            layer.asked.clear()
        try:
            return _run(network, batch)
        except Exception:  # a dummy input is a guess, and a network may refuse it in any way
            continue
    return None


def _run(network: nn.Module, batch: Batch) -> object:
    with evaluating(network), torch.enable_grad(), torch.random.fork_rng():
        return forward(network, batch)


def _check_runs(network: nn.Module, adapter: str, batches: Sequence[Batch], *, ran: bool) -> None:
    """Tells a batch that the network does not take from a network that does not take the adapter.

    Args:
        network: which runs on none of the batches.
        adapter: its name.
        batches: what it was run on.
        ran: whether it ran on them before it had the adapter.

    Raises:
        InputError: it runs without the adapter, and is then what it was.
    """
    with disable_adapters(network):
        ran = ran or _output(network, batches) is not None
    if not ran:
        return
    try:
        _run(network, batches[-1])
    except Exception as error:
        delete_adapter(network, [adapter])
        raise InputError(
            f"the network does not run with this adapter, as it does without: {in_one_line(error)}; exclude_modules "
            "takes the layers out that it needs as they are"
        ) from error


@contextmanager
def _probed(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Lets the output of a run show whose weights the network reads by itself: a leaf of its graph by layer."""
    layers = record_of(network).layers
    probes = {name: torch.zeros((), requires_grad=True) for name in layers}
    for name, layer in layers.items():
        layer.probe = probes[name]
    try:
        yield probes
    finally:
        for layer in layers.values():
            layer.probe = None


def _check_reach(network: nn.Module, adapter: str, output: object, probes: Mapping[str, Tensor]) -> None:
    """Looks which of the parameters that train the network's output depends on, and whose weights it reads.

    Raises:
        InputError: on no adapter; the network is then what it was.
    """
    record = record_of(network)
    reached = _reached(output)
    layers = {name: layer for name, layer in record.layers.items() if adapter in layer.r}
    idle = [n for n, layer in layers.items() if not reached.issuperset(_trained(layer))]
    if len(idle) == len(layers):
        delete_adapter(network, [adapter])
        raise InputError(
            f"the output depends on none of the {len(idle)} layers to be adapted, such as {idle[0]!r}: the network "
            "does not run them; choose others in target_modules"
        )
    if idle:
        warnings.warn(
            f"the output does not depend on {len(idle)} of {len(layers)} adapted layers, which the network does not "
            f"run or whose output it drops; their adapters do not train: "
            f"{listed([name.replace('.base_layer.', '.') for name in idle])}",
            stacklevel=3,
        )
    whole = [n for n, saved in record.saved.items() if saved.trains.get(adapter) and not reached & {*_trained(saved)}]
    if whole:
        warnings.warn(f"the output does not depend on {listed(whole)}, which train in name only", stacklevel=3)
    outer = {n: layer for n, layer in layers.items() if ".base_layer." not in n and n not in idle}
    read = [n for n, layer in outer.items() if not layer.called]
    if read:
        dropout = " without lora_dropout" if record.configs[adapter].lora_dropout else ""
        warnings.warn(
            f"the network reads the weights of {len(read)} adapted layers by itself and does not call them. Their "
            f"adapters act here{dropout}, and everywhere once they are merged; PEFT leaves them out until then: "
            f"{listed(read)}",
            stacklevel=3,
        )
    both = [n for n, layer in outer.items() if layer.called and probes[n] in reached]
    if both:
        warnings.warn(
            f"the network calls {len(both)} adapted layers and reads their weights besides, as tied output embeddings "
            f"are: their adapters act in the call only, as in PEFT, and in both once they are merged: {listed(both)}",
            stacklevel=3,
        )
    spread = [n for n, layer in layers.items() if isinstance(layer, LoraConv) and layer.is_beyond_peft]
    if spread:
        warnings.warn(
            "PEFT's convolutions have no dilation and pad with zeros, so PEFT cannot run this adapter until it is "
            f"merged; leave these out for PEFT: {listed(spread)}",
            stacklevel=3,
        )
    strange = {n: layer.asked - _PEFT_HAS for n, layer in layers.items() if layer.asked - _PEFT_HAS}
    if strange:
        warnings.warn(
            f"the network reads {', '.join(sorted(set().union(*strange.values())))} of {len(strange)} adapted layers, "
            f"which PEFT's layers have not: PEFT cannot run this adapter; merge it first, or leave out "
            f"{listed(list(strange))}",
            stacklevel=3,
        )


def _trained(module: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in module.parameters() if parameter.requires_grad)


def _reached(output: object) -> set[Tensor]:
    """The parameters and probes that floating point tensors in a network's output have a gradient for."""
    found: set[Tensor] = set()
    seen: set[object] = set()
    waiting = [tensor.grad_fn for tensor in _tensors(output)]
    while waiting:
        node: Any = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if node.name() == "torch::autograd::AccumulateGrad":
                found.add(node.variable)
            waiting += [following for following, _ in node.next_functions]
    return found


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def _first(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:_MOST]) + (f" and {len(names) - _MOST} more" if len(names) > _MOST else "")


def _block(name: str) -> str:
    """The part of a network that a layer lies in: its name up to the first part with a number, or what holds it."""
    above = name.rpartition(".")[0]
    found = re.match(r"[^\d]*\d[^.]*", above)
    return found.group() if found else above or name


def _announce(network: nn.Module, adapter: str, *, looked: bool) -> None:
    """Says in one line what was done, and whether it was looked at what acts."""
    record = record_of(network)
    layers = [n for n, layer in record.layers.items() if adapter in layer.r and ".base_layer." not in n]
    kinds = dict.fromkeys(name.rpartition(".")[2] for name in layers)
    blocks = dict.fromkeys(_block(name) for name in layers)
    whole = [name for name, saved in record.saved.items() if saved.trains.get(adapter)]
    trained = sum(p.numel() for p in _trained(network))
    total = sum(p.numel() for p in network.parameters())
    inform(
        f"adapter {adapter!r}: {len(layers)} layers ({_first(list(kinds))}) in {_first(in_runs(list(blocks)))}; "
        f"in full: {listed(whole) or 'nothing'}; {trained:,} of {total:,} parameters train ({trained / total:.2%})"
        f"{'' if looked else '; the network runs on no dummy input: with example=a batch it is seen whether all act'}"
    )


def note_container(model: nn.Module) -> None:
    """Lets what sentence-transformers makes around a network keep a local base from the Hub; see trainer.py."""
    inside = is_encoder_of_sentences(model)
    record_of(model).in_container = inside
    if inside:
        from hf_tl.lora.trainer import guard_push

        guard_push(model)


def inject(model: nn.Module, plan: Plan, *, adapter_name: str = "default", empty: bool = False) -> nn.Module:
    """Puts adapters where the plan says, in place; see add_lora.

    Args:
        model: the network.
        plan: the places.
        adapter_name: the adapter's name.
        empty: leave the new tensors uninitialised for a checkpoint that is about to fill them.

    Raises:
        InputError: an adapter of this name, adapters that are merged, or a layer that cannot take this one; the
            network is then what it was.
    """
    record = vars(model).get(RECORD) or AdapterRecord(model)
    _check(record, plan, adapter_name)
    layers, saved, tokens = _make(record, plan, adapter_name, empty=empty)  # nothing is in place yet
    made = {name: layer for name, layer in layers.items() if name not in record.layers}
    places = {n.rpartition(".")[0] if isinstance(layer, LoraParameter) else n: layer for n, layer in made.items()}
    if not record.configs:
        setattr(model, RECORD, record)
        record.freeze()
        record.keep_gradients()
        record.watch_inputs()
    record.put(places)
    record.put({name: module for name, module in saved.items() if name not in record.saved})
    record.put({name: rows for name, rows in tokens.items() if name not in record.tokens})
    record.layers |= layers
    record.saved |= saved
    record.tokens |= tokens
    for name in plan.frozen:
        record.freeze_statistics(model.get_submodule(name))
    base = plan.config.base_model_name_or_path
    if base is None and is_transformers(model):
        base = model.name_or_path or None  # the Hub id or folder that it was loaded from
    record.configs[adapter_name] = replace(
        plan.config, modules_to_save=tuple(saved) or None, base_model_name_or_path=base
    )
    record.keep_biases(adapter_name)
    record.add_vocabulary(adapter_name, plan.vocabulary)
    set_adapter(model, adapter_name)
    if is_transformers(model):
        from hf_tl.lora.trainer import follow_trainer

        follow_trainer(model)
    return model


def wrap(module: nn.Module, name: str) -> LoraLayer:
    """The layer that holds adapters beside a module.

    Args:
        module: what stands in the network.
        name: where, for the message.

    Raises:
        InputError: a kind that cannot be adapted.
    """
    if computes_otherwise(module):
        raise InputError(
            f"{name!r} is a {type(module).__name__}, a linear layer with a forward pass of its own, beside which an "
            "adapter would not act; put it into exclude_modules"
        )
    if is_fully_connected(module) and not isinstance(module, nn.Bilinear):
        return LoraLinear(module)
    if isinstance(module, nn.Embedding):
        return LoraEmbedding(module)
    if isinstance(module, nn.MultiheadAttention):
        return LoraAttention(module)
    if not isinstance(module, CONVOLUTIONS):
        raise InputError(
            f"target_modules chooses {name!r}, a {type(module).__name__}, but adapters are made for {KINDS}; "
            "name modules of those kinds, or put it into exclude_modules"
        )
    kind = next(kind for kind in CONVOLUTIONS if isinstance(module, kind))
    if type(module).forward is not kind.forward:
        raise InputError(
            f"{name!r} is a {type(module).__name__} with a convolution of its own making, beside which an adapter "
            "would read another input; put it into exclude_modules"
        )
    return LoraConv(module)


def _check(record: AdapterRecord, plan: Plan, adapter: str) -> None:
    config = plan.config
    record.check_enabled("adding an adapter")
    check_new_name(record, adapter)
    if record.is_merged:
        raise InputError("adapters are merged into the weights; call unmerge_adapter before adding another")
    if config.bias != "none" and any(other.bias != "none" for other in record.configs.values()):
        raise InputError(f"bias={config.bias!r} cannot be shared by two adapters; use bias='none' for one of them")
    away = next((n for n, m in record.model.named_modules() if offloaded_to_run_on(m) is not None), None)
    if away is not None and (config.bias != "none" or plan.vocabulary):
        what = f"bias={config.bias!r}" if config.bias != "none" else "a resized vocabulary"
        raise InputError(f"{what} needs the network's own weights, and those of {away!r} and others are offloaded")
    for target in plan.targets:
        if is_inside(target.name, record.saved):
            raise InputError(
                f"{target.name!r} is to be adapted, but trains in full with another adapter; "
                "put it into exclude_modules, or make the other with modules_to_save=()"
            )
    layers = {name for name, layer in record.layers.items() if not isinstance(layer, LoraParameter)}
    parts = {t.name for t in plan.targets if t.is_parameter} | (record.layers.keys() - layers)
    layers |= {t.name for t in plan.targets if not t.is_parameter}
    for name in sorted(parts):
        if name.rpartition(".")[0] in layers:
            raise InputError(
                f"{name!r} is to be adapted as a parameter, and the layer that holds it is adapted as well; leave it "
                "out of target_parameters or target_modules"
            )
    places = {id(layer): name for name, layer in record.layers.items()}
    for target in plan.targets:
        if target.is_parameter:  # of which a module may have several
            continue
        layer = record.layers.get(target.name) or _standing(record, target)
        other = places.setdefault(id(layer), target.name)
        if other != target.name:
            raise InputError(
                f"{target.name!r} is the same layer as {other!r}, beside which one adapter stands; leave it out"
            )
    taken = [*record.layers, *record.saved, *(target.name for target in plan.targets), *plan.saved]
    for name in (*record.tokens, *plan.tokens):
        if name in taken:
            raise InputError(
                f"single rows of {name!r} are to train (trainable_token_indices), and an adapter or all of it does as "
                "well; leave one of them out"
            )
    for name in (*plan.saved, *plan.statistics):
        inner = next((layer for layer in record.layers if is_inside(layer, [name])), None)
        if inner is not None:
            raise InputError(
                f"{name!r} is to train in full, but another adapter adapts {inner!r}; "
                "leave it out of modules_to_save, or give the other exclude_modules"
            )


def _standing(record: AdapterRecord, target: Target) -> nn.Module:
    """What stands in the network where an adapter is to go."""
    return record.model.get_submodule(target.name.rpartition(".")[0] if target.is_parameter else target.name)


def _make(
    record: AdapterRecord, plan: Plan, adapter: str, *, empty: bool
) -> tuple[dict[str, LoraLayer], dict[str, SavedModule], dict[str, TokenRows]]:
    """The layers, saved modules and rows of tokens with the new adapter, by name; new ones stand nowhere yet."""
    layers: dict[str, LoraLayer] = {}
    saved: dict[str, SavedModule] = {}
    nested: dict[str, nn.Module] = {}  # the layers of a module's parameters stand one inside the other
    try:
        for target in plan.targets:
            name = target.name
            if target.is_parameter:
                module, _, own = name.rpartition(".")
                inner = nested.get(module) or _standing(record, target)
                layer = record.layers.get(name) or LoraParameter(inner, own)
                nested[module] = layer if name not in record.layers else inner
            else:
                layer = record.layers.get(name) or wrap(record.model.get_submodule(name), name)
            layers[name] = layer
            if isinstance(layer, LoraAttention):
                layers[f"{name}.base_layer.out_proj"] = layer.output
            parts = (layer, layer.output) if isinstance(layer, LoraAttention) else (layer,)
            for one in parts:
                one.add_adapter(adapter, config=plan.config, rank=target.rank, alpha=target.alpha)
                if not empty:
                    initialise(one, adapter, config=plan.config, parts=target.parts if one is layer else None)
        for name in (*plan.saved, *plan.statistics):
            saved[name] = record.saved.get(name) or SavedModule(record.model.get_submodule(name))
            saved[name].add_adapter(adapter, trains=name in plan.saved)
        tokens = _make_rows(record, plan, adapter)
    except BaseException:  # what was on the network before must not keep a part of it
        for before in record.parts:
            before.delete_adapter(adapter)
        raise
    return layers, saved, tokens


def _make_rows(record: AdapterRecord, plan: Plan, adapter: str) -> dict[str, TokenRows]:
    """The rows of tokens, and what follows them where a layer has the same weight."""
    made: dict[str, TokenRows] = {}
    modules = base_modules(record.model) if plan.tokens else {}
    taken = {*record.layers, *record.saved, *(target.name for target in plan.targets), *plan.saved}
    for name, indices in plan.tokens.items():
        if name in made and made[name].source is not None:  # it follows those of another
            continue
        weight = modules[name].get_parameter("weight")
        made[name] = rows = record.tokens.get(name) or TokenRows(modules[name])
        if rows.source is not None:
            raise InputError(
                f"{name!r} follows the rows of another adapter's embedding, whose weight it shares; name that one"
            )
        rows.add_adapter(adapter, indices=indices)
        for other, module in modules.items():
            own = plan.tokens.get(other, indices)
            same = other != name and module._parameters.get("weight") is weight and module is not modules[name]
            # as in PEFT, where the rows of an output layer are those of its logits alone
            if same and isinstance(modules[name], nn.Embedding) and tuple(own) == tuple(indices):
                if other in taken:
                    raise InputError(
                        f"{other!r} has the weight of {name!r}, of which single rows are to train, and an adapter or "
                        "all of it does as well; leave one of them out"
                    )
                made[other] = record.tokens.get(other) or TokenRows(module, source=rows)
    return made
