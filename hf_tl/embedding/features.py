"""From the raw activations of a store to its statistics and its features, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

import numpy as np

from hf_tl.embedding.codec import find_codec
from hf_tl.embedding.embedding import read_tensors
from hf_tl.embedding.fingerprint import fingerprint_json
from hf_tl.embedding.processes import Processes
from hf_tl.embedding.recipe import Recipe
from hf_tl.embedding.statistics import Statistics
from hf_tl.embedding.store import STATISTICS, Store, replace_file
from hf_tl.errors import InputError


def fit_statistics(blocks: Iterable[np.ndarray], width: int, processes: Processes, *, at_least: int = 2) -> Statistics:
    """Statistics of the rows of all processes, from each one's own blocks (rows, width).

    Only sums travel between processes. Each row belongs to one of them, so none is counted twice.

    Raises:
        InputError: fewer than `at_least` rows in all.
    """
    own = Statistics(width)
    for block in blocks:
        own.update(block)
    merged = Statistics(width)
    for state in processes.gather(own.state()):
        merged = merged.merge(Statistics.from_state(state))
    if merged.n < at_least:
        raise InputError(f"training statistics need two rows or more, got {merged.n}")
    return merged


def fit_store(store: Store, processes: Processes) -> Statistics:
    """Statistics of a store's raw activations; where those were dropped, the statistics that were kept."""
    if not store.has_raw:
        return Statistics.from_state(read_tensors(store.folder / STATISTICS))
    positions = processes.share(store.positions)
    statistics = fit_statistics((values for _, values in store.raw_blocks(positions)), store.width, processes)
    if processes.main:
        save_statistics(store, statistics)
    return statistics


def save_statistics(store: Store, statistics: Statistics) -> None:
    """Writes the statistics into the folder, in one step."""
    from safetensors.numpy import save

    replace_file(store.folder / STATISTICS, save(statistics.state()))


def write_features(
    store: Store, recipe: Recipe, statistics: Statistics, *, codec: str, keep_raw: bool, processes: Processes
) -> None:
    """Writes the features of all rows, unless they are there; when it returns, all processes have.

    Args:
        store: with raw activations, or with these features.
        recipe: from raw activations to features.
        statistics: of the training rows.
        codec: how values in {-1, 0, 1} stand in the file: "2bit" or "int8".
        keep_raw: whether the raw activations stay.
        processes: who takes part.

    Raises:
        InputError: the raw activations were dropped and the features are of another recipe.
    """
    used = find_codec("float32" if recipe.thresholds is None else codec, store.width)
    state = {name: values.tolist() for name, values in statistics.state().items()}
    about = {"codec": used.name, "recipe": asdict(recipe), "statistics": fingerprint_json(state)}
    about["recipe"]["thresholds"] = None if recipe.thresholds is None else list(recipe.thresholds)
    about = processes.gather(about)[0]
    if store.manifest["features"] != about:
        if not store.has_raw:
            raise InputError(
                f"{str(store.folder)!r} holds features of another recipe, and its raw activations were dropped; "
                f"choose another folder"
            )
        if processes.main:
            store.allot_features(used)
        processes.wait()
        scale = recipe.scaler(statistics, [layer["stop"] - layer["start"] for layer in store.manifest["layers"]])
        for positions, values in store.raw_blocks(processes.share(store.positions)):
            store.write_features(positions, scale(values), used)
        processes.wait()
        if processes.main:
            store.finish_features(about)
    if processes.main and not keep_raw:
        store.drop_raw()
    processes.wait()
