"""Where the tensors of an adapter's file belong in a network, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from hf_tl.architectures import CONVOLUTIONS, is_conv1d
from hf_tl.errors import InputError
from hf_tl.lora.adapter import Adapter, LayerUpdate
from hf_tl.lora.kinds import is_linear
from hf_tl.lora.renames import find_names
from hf_tl.lora.targets import base_modules
from hf_tl.names import closest


_SHOWN = 5


@dataclass
class Placement:
    """An adapter's tensors under the names of one network.

    Attributes:
        updates: name of a layer in the network -> its update.
        alphas: name of a layer in the network -> lora_alpha.
        saved: names of the modules that come whole: heads, norms with their statistics.
        tensors: every tensor that is to be filled in, by its name in a file for this network.
        base: name of a weight of the network itself -> what it is replaced with (embeddings that came along).
        problems: what does not fit, by kind: "missing", "unexpected", "mismatched".
        renamed: whether any layer has another name in the file.
    """

    updates: dict[str, LayerUpdate] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    saved: list[str] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    base: dict[str, Tensor] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=lambda: {"missing": [], "unexpected": [], "mismatched": []})
    renamed: bool = False

    def complaint(self, adapter: Adapter, model: nn.Module) -> str | None:
        """Everything that does not fit in one sentence; None if all does."""
        parts = []
        for kind, found in self.problems.items():
            if found:
                shown = "; ".join(found[:_SHOWN]) + (
                    f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
                )
                parts.append(f"{len(found)} {kind}: {shown}")
        if not parts:
            return None
        return f"adapter {adapter.folder!r} does not fit this {type(model).__name__}: {' | '.join(parts)}"


def place(adapter: Adapter, model: nn.Module) -> Placement:
    """Finds the place of every tensor in the network by the tensor's own name, not by the file's patterns.

    Nothing in the network is changed.
    """
    modules = base_modules(model)
    found = Placement()
    _place_updates(adapter, model, modules, found)
    _place_others(adapter, model, modules, found)
    if not found.renamed:
        _find_untouched(adapter, modules, found)
    return found


def _place_updates(adapter: Adapter, model: nn.Module, modules: Mapping, found: Placement) -> None:
    plain = {name: name.replace(".base_layer", "") for name in adapter.updates}
    named = find_names(plain.values(), model, modules)
    names = [name for name in modules if name]
    within: dict[str, LayerUpdate] = {}
    for written, update in adapter.updates.items():
        name = named[plain[written]]
        if name is None:
            found.problems["unexpected"].append(f"layer {written!r} ({closest(plain[written], names)})")
            continue
        if name in found.updates:
            found.problems["unexpected"].append(f"layer {written!r} (it is {name!r}, which the file has already)")
            continue
        found.renamed |= name != plain[written]
        expected = _expected_shapes(modules[name], update)
        shapes = {"A": tuple(update.A.shape), "B": tuple(update.B.shape)}
        if isinstance(expected, str):
            found.problems["unexpected"].append(f"layer {written!r} (in the network it is {expected})")
            continue
        wrong = [
            f"{part} is {shapes[part]}, expected {expected[part]}" for part in "AB" if shapes[part] != expected[part]
        ]
        if wrong:
            found.problems["mismatched"].append(f"layer {written!r} ({' and '.join(wrong)})")
            continue
        place, owner = name, name.rpartition(".")[0]
        if isinstance(modules.get(owner), nn.MultiheadAttention):
            place = f"{owner}.base_layer.{name.rpartition('.')[2]}"  # it goes with the attention it lies in
            within[owner] = update
        else:
            found.updates[name] = update
            found.alphas[name] = adapter.alpha_of(written)
        for ending, part in _endings(update):
            found.tensors[f"{place}.{ending}"] = part
    for owner, update in within.items():
        if owner not in found.updates:
            found.problems["missing"].append(f"layer {owner!r}, whose out_proj is in the file")
        elif found.updates[owner].rank != update.rank:
            found.problems["mismatched"].append(f"the ranks of layer {owner!r} and its out_proj")


def _expected_shapes(module: nn.Module, update: LayerUpdate) -> dict[str, tuple[int, ...]] | str:
    """The shapes of A and B that a module needs at the update's rank, or why it cannot have one."""
    rank = update.rank
    if isinstance(module, nn.Embedding):
        if not update.embedding:
            return "an embedding, whose factors are called lora_embedding_A and _B"
        return {"A": (rank, module.num_embeddings), "B": (module.embedding_dim, rank)}
    if update.embedding:
        return f"a {type(module).__name__}, not an embedding"
    if isinstance(module, CONVOLUTIONS):
        ones = (1,) * len(module.kernel_size)
        if rank % module.groups:
            return f"a convolution in {module.groups} groups, which do not divide the rank {rank}"
        return {
            "A": (rank, module.in_channels, *module.kernel_size),
            "B": (module.out_channels, rank // module.groups, *ones),
        }
    if isinstance(module, nn.MultiheadAttention):
        return {"A": (rank, module.embed_dim), "B": (3 * module.embed_dim, rank)}
    if isinstance(module, nn.Linear):
        return {"A": (rank, module.in_features), "B": (module.out_features, rank)}
    if is_conv1d(module):
        inner, outer = module.weight.shape
        return {"A": (rank, inner), "B": (outer, rank)}
    return f"a {type(module).__name__}, which has no weight to update"


def is_adaptable(module: nn.Module) -> bool:
    """Whether a module is of a kind that PEFT puts factors on."""
    return is_linear(module) or isinstance(module, (*CONVOLUTIONS, nn.Embedding, nn.MultiheadAttention))


def _endings(update: LayerUpdate) -> Iterator[tuple[str, Tensor]]:
    yield ("lora_embedding_A" if update.embedding else "lora_A.weight"), update.A
    yield ("lora_embedding_B" if update.embedding else "lora_B.weight"), update.B
    if update.bias is not None:
        yield "lora_B.bias", update.bias
    if update.magnitude is not None:
        yield "lora_magnitude_vector", update.magnitude


def _place_others(adapter: Adapter, model: nn.Module, modules: Mapping, found: Placement) -> None:
    """Heads and other modules that come whole, biases, and embeddings that came along."""
    wanted = adapter.config.get("modules_to_save") or ()
    biases = adapter.config.get("bias", "none") != "none"
    owners = {key: key.rpartition(".")[0].replace(".base_layer", "") for key in adapter.others}
    named = find_names(dict.fromkeys(owners.values()), model, modules)
    contents: dict[str, dict[str, Tensor]] = {}
    for key, tensor in adapter.others.items():
        name, part = named[owners[key]], key.rpartition(".")[2]
        module = None if name is None else modules[name]
        own = None if module is None else {**module._parameters, **module._buffers}.get(part)
        if own is None:
            near = closest(owners[key], [name for name in modules if name])
            found.problems["unexpected"].append(f"{key!r} ({near})")
            continue
        if own.shape != tensor.shape or own.is_floating_point() != tensor.is_floating_point():
            is_written, is_here = (f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in (tensor, own))
            hint = _resize_hint(module, key, wanted, own, tensor)
            found.problems["mismatched"].append(f"{key!r} (is {is_written}, expected {is_here}{hint})")
            continue
        saved = _saved_parent(name, wanted)
        if saved is not None:
            contents.setdefault(saved, {})[f"{name}.{part}"] = tensor
        elif part == "bias" and biases:
            ending = ".base_layer.bias" if name in found.updates else ".bias"
            found.tensors[name + ending] = tensor
        elif part == "weight" and isinstance(module, (nn.Embedding, nn.Linear)):
            if name in found.updates or isinstance(module, nn.Embedding):
                found.base[f"{name}.weight"] = tensor
            else:
                found.problems["unexpected"].append(f"{key!r} (not among modules_to_save={list(wanted)})")
        else:
            found.problems["unexpected"].append(f"{key!r} (not among modules_to_save={list(wanted)})")
    for saved, tensors in contents.items():
        lacking = [key for key in _keys(modules[saved], saved) if key not in tensors]
        found.problems["missing"].extend(repr(key) for key in lacking)
        found.saved.append(saved)
        found.tensors.update(tensors)
    _find_unsaved(adapter, modules, found, wanted)


def _saved_parent(name: str, wanted: Sequence[str]) -> str | None:
    """The module of modules_to_save that `name` is or lies in: the outermost whose name ends so."""
    if not any(entry in name for entry in wanted):
        return None
    parts = name.split(".")
    for n in range(1, len(parts) + 1):
        outer = ".".join(parts[:n])
        if any(outer.endswith(entry) for entry in wanted if entry):
            return outer
    return None


def _keys(module: nn.Module, name: str) -> list[str]:
    return [f"{name}.{key}" for key in module.state_dict()]


def _find_unsaved(adapter: Adapter, modules: Mapping, found: Placement, wanted: Sequence[str]) -> None:
    """Modules that the configuration says come whole, and of which the file has nothing."""
    troubled = bool(found.problems["mismatched"] or found.problems["unexpected"])
    for name, module in modules.items():
        if not name or troubled or _saved_parent(name, wanted) != name or name in found.saved:
            continue
        found.problems["missing"].extend(repr(key) for key in _keys(module, name))


def _find_untouched(adapter: Adapter, modules: Mapping, found: Placement) -> None:
    """Layers that the configuration names one by one, and of which the file has nothing."""
    wanted = adapter.config.get("target_modules")
    if not isinstance(wanted, list) or adapter.config.get("layers_to_transform") is not None:
        return  # patterns are not followed: those of a stranger may never end
    exact, excluded = set(wanted), adapter.config.get("exclude_modules") or []
    if isinstance(excluded, str):
        return
    saved = adapter.config.get("modules_to_save") or ()
    for name, module in modules.items():
        inside = isinstance(modules.get(name.rpartition(".")[0]), nn.MultiheadAttention)
        if name in found.updates or inside or not is_adaptable(module):
            continue
        chosen, left_out = (any(name == e or name.endswith(f".{e}") for e in some) for some in (exact, excluded))
        if chosen and not left_out and _saved_parent(name, saved) is None:
            found.problems["missing"].append(f"layer {name!r}")


def _resize_hint(module: nn.Module, key: str, wanted: Sequence[str], own: Tensor, tensor: Tensor) -> str:
    if own.ndim == 0 or tensor.ndim == 0 or own.shape[1:] != tensor.shape[1:]:
        return ""
    if isinstance(module, nn.Embedding):
        return f"; resize_token_embeddings({tensor.shape[0]}) first"
    is_head = _saved_parent(key.rpartition(".")[0], wanted) is not None
    return f"; build the network with {tensor.shape[0]} outputs" if is_head else ""


def base_weights(adapter: Adapter, model: nn.Module) -> dict[str, Tensor]:
    """Layer name in the adapter -> the network's weight there, in the network's order.

    Raises:
        InputError: layers that the network does not have, or that are of another shape there.
    """
    modules, updates = base_modules(model), Placement()
    _place_updates(adapter, model, modules, updates)
    complaint = updates.complaint(adapter, model)
    if complaint:
        raise InputError(complaint)
    plain = {name.replace(".base_layer", ""): name for name in adapter.updates}
    named = find_names(plain, model, modules)
    written = {name: plain[old] for old, name in named.items() if name is not None}
    found = {}
    for name, module in modules.items():
        if name in written:
            weight = module.in_proj_weight if isinstance(module, nn.MultiheadAttention) else module.weight
            found[written[name]] = weight.detach()
    return found
