"""Where the tensors of an adapter's file belong in a network, and what does not fit."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_tl.architectures import CONVOLUTIONS, find_output_embeddings, is_container, is_conv1d, is_transformers
from hf_tl.errors import InputError
from hf_tl.lora.adapted import base_modules, parameter_names
from hf_tl.lora.adapter import Adapter, LayerUpdate, is_finite
from hf_tl.lora.experts import stack_experts
from hf_tl.lora.parameter import n_experts, stacked_shapes
from hf_tl.lora.quantised import plain_weight
from hf_tl.lora.token_rows import ROWS
from hf_tl.names import closest, peft_matcher


_SHOWN = 5
_WRAPPERS = re.compile(r"^(?:module\.)+|(?<![^.])_orig_mod\.")


@dataclass
class Placement:
    """An adapter's tensors under the names of one network.

    Attributes:
        adapter: what was read.
        model: the network, without adapters or with them; it is not changed.
        modules: its modules by name, as they were before any adapter.
        written: name of a layer in the network -> its name in the file.
        updates: name of a layer in the network -> its update.
        saved: names of the modules that come whole: heads, norms with their statistics.
        tensors: every tensor that is to be filled in, by its name in a file for this network.
        vocabulary: names of the tensors of the network's own embeddings, or output embeddings, that the file brings.
        tokens: name of an embedding, or of the layer before the logits -> its rows that the file brings.
        problems: what does not fit, by kind: "missing", "unexpected", "mismatched".
    """

    adapter: Adapter
    model: nn.Module
    modules: Mapping[str, nn.Module]
    written: dict[str, str] = field(default_factory=dict)
    updates: dict[str, LayerUpdate] = field(default_factory=dict)
    saved: list[str] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    vocabulary: list[str] = field(default_factory=list)
    tokens: dict[str, tuple[int, ...]] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=lambda: {"missing": [], "unexpected": [], "mismatched": []})

    @property
    def renamed(self) -> bool:
        """Whether any layer has another name in the file."""
        layers = {name: name.rpartition(".")[0] if name in self.parameters else name for name in self.written}
        return any(layers[name] != _plain(written) for name, written in self.written.items())

    def complaint(self) -> str | None:
        """Everything that does not fit in one sentence; None if all does."""
        parts = []
        for kind, found in self.problems.items():
            if found:
                more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
                parts.append(f"{len(found)} {kind}: {'; '.join(found[:_SHOWN])}{more}")
        fits = f"adapter {self.adapter.folder!r} does not fit this {type(self.model).__name__}"
        return f"{fits}: {' | '.join(parts)}" if parts else None

    def place_updates(self) -> None:
        """Finds the layer of each update."""
        plain = {written: _plain(written) for written in self.adapter.updates}
        named = find_names(plain.values(), self.model, self.modules)
        chosen = self._wanted_parameters()
        experts = self._place_experts({w: plain[w] for w in plain if named[plain[w]] is None})
        for written, update in self.adapter.updates.items():
            name = named[plain[written]]
            if written in experts:
                continue
            if name is not None and update.experts == 1 and _is_router(self.modules[name]):
                self._place_parameter(written, name, [f"{name}.weight"], update)
                continue
            own = [parameter for parameter in chosen if parameter.rpartition(".")[0] == name]
            if name is not None and update.experts is None and own:
                self._place_parameter(written, name, own, update)
                continue
            if name is None:
                self._unexpected(f"layer {written!r} ({self._closest(plain[written])})")
            elif name in self.written:
                self._unexpected(f"layer {written!r} (it is {name!r}, which the file has already)")
            else:
                self._place_update(written, name, update)
        for name in self.written.keys() - self.updates.keys():
            owner = name.rpartition(".")[0]
            if owner not in self.updates:
                self.problems["missing"].append(f"layer {owner!r}, whose out_proj is in the file")
            elif self.updates[owner].rank != self.adapter.updates[self.written[name]].rank:
                self.problems["mismatched"].append(f"the ranks of layer {owner!r} and its out_proj")

    def place_others(self) -> None:
        """Finds the places of heads and other modules that come whole, of biases and of vocabularies."""
        owners = {key: _plain(key.removesuffix(f".{ROWS}").rpartition(".")[0]) for key in self.adapter.others}
        owners |= {key: key.removesuffix(f".{ROWS}") for key in owners if key.endswith(f".{ROWS}")}
        named = find_names(dict.fromkeys(owners.values()), self.model, self.modules)
        contents: dict[str, dict[str, Tensor]] = {}
        rows = {key: name for key in owners if key.endswith(f".{ROWS}") and (name := named[owners[key]]) is not None}
        for key in sorted(rows, key=lambda key: self._follows(rows[key])):
            self._place_rows(key, rows[key], self.adapter.others[key])
        for key, tensor in self.adapter.others.items():
            name, part = named[owners[key]], key.rpartition(".")[2]
            if key in rows:
                continue
            own = None if name is None else _own_tensors(self.modules[name]).get(part)
            if name is None or own is None:
                self._unexpected(f"{key!r} ({self._closest(owners[key])})")
            elif own.shape != tensor.shape or own.is_floating_point() != tensor.is_floating_point():
                self._mismatched(key, name, own, tensor)
            elif not is_finite(tensor.to(own.dtype)):
                self._too_large(key, tensor, own.dtype)
            elif (whole := self._saved_parent(name)) is not None:
                contents.setdefault(whole, {})[f"{name}.{part}"] = tensor
            elif part == "bias" and self.adapter.settings.bias != "none":
                self.tensors[f"{self._live(name)}.bias"] = tensor
            elif self._is_vocabulary(name):
                self.vocabulary.append(f"{name}.{part}")
                self.tensors[f"{self._live(name)}.{part}"] = tensor
            else:
                self._unexpected(f"{key!r} (not among modules_to_save={list(self._wanted)})")
        for name, tensors in contents.items():
            self.problems["missing"].extend(repr(key) for key in self._keys(name) if key not in tensors)
            self.saved.append(name)
            self.tensors |= tensors

    def _live(self, name: str) -> str:
        """Where a module's own parameters are, once the adapter is on the network."""
        owner, _, child = name.rpartition(".")
        if owner in self.updates and isinstance(self.modules[owner], nn.MultiheadAttention):
            return f"{owner}.base_layer.{child}.base_layer"
        return f"{name}.base_layer" if name in self.updates or self._with_rows(name) is not None else name

    def _with_rows(self, name: str) -> str | None:
        """Which module's rows a module has: its own, or those of an embedding with the same weight."""
        weight = self.modules[name]._parameters.get("weight")
        tables = [other for other in self.tokens if isinstance(self.modules[other], nn.Embedding)]
        same = (other for other in tables if self.modules[other].weight is weight)
        return name if name in self.tokens else next(same, None)

    def _follows(self, name: str) -> tuple[bool, bool]:
        """Sorts what the configuration names before what follows it, and embeddings before output layers."""
        return not self.adapter.tokens_of(name), not isinstance(self.modules[name], nn.Embedding)

    def _place_rows(self, key: str, name: str, tensor: Tensor) -> None:
        """Finds which rows of an embedding a tensor has: the configuration says."""
        twin = self._with_rows(name)
        if twin is not None and torch.equal(tensor, self.tensors[f"{twin}.{ROWS}"]):
            return  # the same rows of the same weight, written twice
        wanted = self.adapter.tokens_of(name)
        weight = _own_tensors(self.modules[name]).get("weight")
        if weight is None or weight.dim() != 2 or not wanted:
            self._unexpected(f"{key!r} (trainable_token_indices names no rows of {name!r})")
        elif tuple(tensor.shape) != (len(wanted), weight.shape[1]):
            expected = (len(wanted), weight.shape[1])
            self.problems["mismatched"].append(f"{key!r} (is {tuple(tensor.shape)}, expected {expected})")
        elif max(wanted) >= weight.shape[0]:
            self.problems["mismatched"].append(
                f"{key!r} (row {max(wanted)} of {weight.shape[0]}; resize_token_embeddings({max(wanted) + 1}) first)"
            )
        else:
            self.tokens[name] = tuple(wanted)
            self.tensors[f"{name}.{ROWS}"] = tensor

    def find_missing(self) -> None:
        """Finds what the configuration names, layers or whole modules, and the file has nothing of."""
        if not (self.problems["mismatched"] or self.problems["unexpected"]):
            if self.adapter.config.get("trainable_token_indices") and not self.tokens:
                self.problems["missing"].append("the rows of trainable_token_indices")
            wanted_parameters = self._wanted_parameters()
            self.problems["missing"] += [f"parameter {n!r}" for n in wanted_parameters if n not in self.updates]
            for name in self.modules:
                if name and name not in self.saved and self._saved_parent(name) == name:
                    self.problems["missing"].extend(map(repr, self._keys(name)))
        wanted, excluded = (self.adapter.config.get(key) for key in ("target_modules", "exclude_modules"))
        # patterns are not followed: those of an untrusted file may take long
        indices = self.adapter.config.get("layers_to_transform")
        if self.renamed or not isinstance(wanted, list) or isinstance(excluded, str) or indices is not None:
            return
        chosen, left_out = peft_matcher(wanted), peft_matcher(excluded if isinstance(excluded, list) else ())
        for name, module in self.modules.items():
            owner = self.modules.get(name.rpartition(".")[0])
            if name in self.updates or not is_adaptable(module) or isinstance(owner, nn.MultiheadAttention):
                continue
            if chosen(name) and not left_out(name) and self._saved_parent(name) is None:
                self.problems["missing"].append(f"layer {name!r}")

    @property
    def _wanted(self) -> Sequence[str]:
        return self.adapter.settings.modules_to_save or ()

    def _place_update(self, written: str, name: str, update: LayerUpdate) -> None:
        expected = _expected_shapes(self.modules[name], update)
        if isinstance(expected, str):
            self._unexpected(f"layer {written!r} (in the network it is {expected})")
            return
        shapes = (tuple(update.A.shape), tuple(update.B.shape))
        wrong = [
            f"{part} is {found}, expected {wanted}"
            for part, found, wanted in zip("AB", shapes, expected, strict=True)
            if found != wanted
        ]
        if wrong:
            self.problems["mismatched"].append(f"layer {written!r} ({' and '.join(wrong)})")
            return
        double = any(p.dtype == torch.float64 for p in self.modules[name].parameters(recurse=False))
        factors = torch.float64 if double else torch.float32
        for ending, tensor in update.tensors().items():
            if not is_finite(tensor.to(factors)):
                self._too_large(f"{written}.{ending}", tensor, factors)
                return
        self.written[name] = written
        owner, _, child = name.rpartition(".")
        if isinstance(self.modules.get(owner), nn.MultiheadAttention):
            place = f"{owner}.base_layer.{child}"  # it goes with the attention it lies in
        else:
            place = name
            self.updates[name] = update
        self.tensors |= {f"{place}.{ending}": tensor for ending, tensor in update.tensors().items()}

    def _place_experts(self, plain: Mapping[str, str]) -> set[str]:
        """Finds the stacked parameters of experts that the file has one by one; which of its names these are."""
        old = {written: name for written, name in plain.items() if ".experts." in name}
        if not old:
            return set()
        renamings = _renamings(self.model)
        names = {written: _renamed(name, renamings) for written, name in old.items()}
        made, used = stack_experts(self.adapter.updates, names, self.model, self.modules)
        for name, update in made.items():
            module, _, own = name.rpartition(".")
            order = [parameter for parameter, _ in self.modules[module].named_parameters(recurse=False)]
            later = order[order.index(own) + 1 :]
            place = module + ".base_layer" * sum(f"{module}.{one}" in made for one in later)
            self.written[name] = next(written for written, parameter in used.items() if parameter == name)
            self.updates[name] = update
            self.tensors |= {f"{place}.{ending}": tensor for ending, tensor in update.tensors().items()}
        return set(used)

    def _wanted_parameters(self) -> list[str]:
        """The parameters of the network that target_parameters names."""
        wanted: Any = self.adapter.config.get("target_parameters") or ()
        return list(filter(peft_matcher(wanted), parameter_names(self.modules))) if wanted else []

    def _place_parameter(self, written: str, module: str, chosen: Sequence[str], update: LayerUpdate) -> None:
        """Finds which of a module's parameters an update is for: PEFT nests them, the last one outermost."""
        depth = written.count(".base_layer")
        if depth >= len(chosen):
            self._unexpected(f"layer {written!r} ({module!r} has {len(chosen)} of the target_parameters)")
            return
        name = chosen[-1 - depth]
        weight = self.modules[module].get_parameter(name.rpartition(".")[2])
        rank = self.adapter.rank_of(name)
        expected = stacked_shapes(self.modules[module], name.rpartition(".")[2], rank)
        if (tuple(update.A.shape), tuple(update.B.shape)) != expected:
            shapes = (
                f"A is {tuple(update.A.shape)} and B {tuple(update.B.shape)}, expected {expected[0]}, {expected[1]}"
            )
            self.problems["mismatched"].append(f"{name!r}, as layer {written!r} ({shapes})")
            return
        if name in self.written:
            self._unexpected(f"layer {written!r} (it is {name!r}, which the file has already)")
            return
        scale = self.adapter.settings.scaling(rank, self.adapter.alpha_of(name))
        self.written[name] = written
        self.updates[name] = replace(update, name=name, scale=scale, experts=n_experts(weight))
        place = module + ".base_layer" * depth
        self.tensors |= {f"{place}.{ending}": tensor for ending, tensor in update.tensors().items()}

    @property
    def parameters(self) -> list[str]:
        """Of `updates`, the names that are of parameters and not of layers."""
        return [name for name in self.updates if name not in self.modules]

    def _saved_parent(self, name: str) -> str | None:
        """The module that comes whole which `name` is or lies in: the outermost that modules_to_save names.

        PEFT takes any name that ends so. Of a container, which is never called, every child comes for itself.
        """
        if not any(entry in name for entry in self._wanted):
            return None
        parts, chosen = name.split("."), False
        for n in range(1, len(parts) + 1):
            outer = ".".join(parts[:n])
            chosen = chosen or any(outer.endswith(entry) for entry in self._wanted if entry)
            if chosen and not is_container(self.modules[outer]):
                return outer
        return None

    def _is_vocabulary(self, name: str) -> bool:
        module = self.modules[name]
        return isinstance(module, nn.Embedding) or module is find_output_embeddings(self.model)

    def _keys(self, name: str) -> list[str]:
        return [f"{name}.{key}" for key in self.modules[name].state_dict()]

    def _unexpected(self, what: str) -> None:
        self.problems["unexpected"].append(what)

    def _mismatched(self, key: str, name: str, own: Tensor, tensor: Tensor) -> None:
        written, here = (f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in (tensor, own))
        hint = ""
        if own.ndim > 0 and tensor.ndim > 0 and own.shape[1:] == tensor.shape[1:]:
            if self._is_vocabulary(name):
                hint = f"; resize_token_embeddings({tensor.shape[0]}) first"
            elif self._saved_parent(name) is not None:
                hint = f"; build the network with {tensor.shape[0]} outputs"
        self.problems["mismatched"].append(f"{key!r} (is {written}, expected {here}{hint})")

    def _too_large(self, key: str, tensor: Tensor, dtype: torch.dtype) -> None:
        largest = float(tensor.abs().max())
        self.problems["mismatched"].append(f"{key!r} (holds values up to {largest:.3g}, more than {dtype} can)")

    def _closest(self, name: str) -> str:
        return closest(name, [known for known in self.modules if known])


def place(adapter: Adapter, model: nn.Module) -> Placement:
    """Finds the place of every tensor in the network by the tensor's own name, not by the file's patterns.

    Nothing in the network is changed.
    """
    found = Placement(adapter, model, base_modules(model))
    found.place_updates()
    found.place_others()
    found.find_missing()
    return found


def base_weights(adapter: Adapter, model: nn.Module) -> dict[str, Tensor]:
    """Layer name in the adapter -> the network's weight there, in the network's order.

    Raises:
        InputError: layers that the network does not have, or that are of another shape there.
    """
    found = Placement(adapter, model, base_modules(model))
    found.place_updates()
    complaint = found.complaint()
    if complaint:
        raise InputError(complaint)
    weights = {}
    for name, module in found.modules.items():
        if name in found.written:
            part = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
            weights[found.written[name]] = plain_weight(module, part)
    return weights


def is_adaptable(module: nn.Module) -> bool:
    """Whether a module is of a kind that PEFT puts factors on."""
    kinds = (nn.Linear, *CONVOLUTIONS, nn.Embedding, nn.MultiheadAttention)
    return isinstance(module, kinds) or is_conv1d(module)


def find_names(names: Iterable[str], model: nn.Module, known: Collection[str]) -> dict[str, str | None]:
    """Each name of a module in a file as the network has it now; None where nothing there corresponds.

    A name that the network has stays. Another loses what torch.compile and DistributedDataParallel put before it, is
    renamed as transformers renames the keys of old checkpoints
    (`encoder.layer.0.attention.attention.query` of ViT is `layers.0.attention.q_proj` since transformers 5), and
    gets or loses the base model's prefix where that makes it one of the network's names.

    Args:
        names: modules, as the file has them.
        model: the network without adapters, or with them: its class decides, not its modules.
        known: the names that the network has.
    """
    found: dict[str, str | None] = {name: name for name in names if name in known}
    strange = {name: _WRAPPERS.sub("", name) for name in names if name not in known}
    found |= {name: bare if bare in known else None for name, bare in strange.items()}
    if None not in found.values() or not is_transformers(model):
        return found
    prefix, renamings = f"{model.base_model_prefix}.", _renamings(model)
    for name in (name for name, place in found.items() if place is None):
        new = _renamed(strange[name], renamings)
        candidates = (new, f"{prefix}{new}", new.removeprefix(prefix))
        found[name] = next((candidate for candidate in candidates if candidate in known), None)
    return found


def _renamings(model: nn.Module) -> list[Any]:
    """How transformers renames the keys of old checkpoints of a network; [] for one of another make."""
    if not is_transformers(model):
        return []
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    return [change for change in get_model_conversion_mapping(model) if isinstance(change, WeightRenaming)]


def _renamed(name: str, renamings: Sequence[Any]) -> str:
    key = f"{name}.weight"  # the patterns are written for names of tensors
    for renaming in renamings:
        key, _ = renaming.rename_source_key(key)
    return key.removesuffix(".weight")


def _is_router(module: nn.Module) -> bool:
    """Whether a module was a linear layer before transformers 5 and only holds its weight now."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return "Router" in type(module).__name__ and not is_adaptable(module) and weight is not None and weight.dim() == 2


def _plain(written: str) -> str:
    return written.replace(".base_layer", "")


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(
        [*module.named_parameters(recurse=False, remove_duplicate=False), *module.named_buffers(recurse=False)]
    )


def _expected_shapes(module: nn.Module, update: LayerUpdate) -> tuple[tuple[int, ...], tuple[int, ...]] | str:
    """The shapes of A and B that a module needs at the update's rank, or why it cannot have one."""
    rank = update.rank
    if isinstance(module, nn.Embedding) and update.embedding:
        return (rank, module.num_embeddings), (module.embedding_dim, rank)
    if isinstance(module, nn.Embedding):
        return "an embedding, whose factors are called lora_embedding_A and _B"
    if update.embedding:
        return f"a {type(module).__name__}, not an embedding"
    if isinstance(module, CONVOLUTIONS):
        if rank % module.groups:
            return f"a convolution in {module.groups} groups, which do not divide the rank {rank}"
        ones = (1,) * len(module.kernel_size)
        return (rank, module.in_channels, *module.kernel_size), (module.out_channels, rank // module.groups, *ones)
    if isinstance(module, nn.MultiheadAttention):
        return (rank, module.embed_dim), (3 * module.embed_dim, rank)
    if isinstance(module, nn.Linear):
        return (rank, module.in_features), (module.out_features, rank)
    if is_conv1d(module):
        inner, outer = module.weight.shape
        return (rank, inner), (outer, rank)
    return f"a {type(module).__name__}, which has no weight to update"
