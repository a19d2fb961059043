"""Ranks networks for a task from their features, without training one; reads the training samples once a network."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from hf_tl.cli.arguments import DATA, MODEL, add_reading
from hf_tl.errors import InputError


EXAMPLES = """\
  hf-tl rank timm/resnet18.a1_in1k timm/mobilenetv2_100.ra_in1k --data beans
  hf-tl rank path/to/one path/to/other --data photos --scores knn logme --samples 1000"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("models", nargs="+", metavar="model", help=MODEL)
    add("--data", required=True, help=DATA)
    add("--scores", nargs="+", default=["knn", "ridge", "logme", "hscore"], help="knn, ridge, logme, hscore, plug-ins")
    add("--taps", nargs="+", default=["last"], metavar="LAYERS", help="which layers are read (default: the last)")
    add("--samples", type=int, metavar="N", help="training samples that are read, drawn at random (default: all)")
    add_reading(parser, recipe=False)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from hf_tl.analysis.ranking import rank_networks
    from hf_tl.analysis.transferability import find_score
    from hf_tl.analysis.twins import twin_groups
    from hf_tl.cli.reading import look_for_twins
    from hf_tl.data import load_task
    from hf_tl.embedding.full_network import FullNetworkEmbedding
    from hf_tl.embedding.recipe import RECIPES
    from hf_tl.models import find_modality, load_network

    for score in options.scores:
        find_score(score)
    names = list(options.models)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"network {twice!r} is given twice; give each once, and others to rank it among")
    modalities = {name: find_modality(name) for name in names}  # a name that is misspelt is found before time is spent
    if len(set(modalities.values())) > 1:
        raise InputError(f"networks that read different things cannot be ranked: {modalities}")
    task = load_task(
        options.data,
        modality=modalities[names[0]],
        label=options.label,
        input_column=options.input,
        config=options.config,
        problem=options.problem,
        groups=twin_groups,
    )
    samples = task.train
    if options.samples is not None:
        if options.samples < 2:
            raise InputError(f"--samples should be 2 or more, got {options.samples}")
        samples = samples.sample(options.samples)
    notes = list(task.notes)
    groups = look_for_twins(samples, modality=modalities[names[0]], notes=notes)
    embeddings, times = {}, []
    for name in names:
        start = time.perf_counter()
        reader = FullNetworkEmbedding(
            load_network(name, image_size=options.image_size, max_length=options.max_length),
            recipe=RECIPES["raw"],
            taps=options.taps,
            batch_size=options.batch_size,
            device=options.device,
            on_bad_samples=options.on_bad_samples,
        )
        embeddings[name] = reader.activations(samples)
        times.append(f"{Path(name).name} {time.perf_counter() - start:.0f} s")
    groups = groups if groups is None else groups[next(iter(embeddings.values())).indices]
    ranking = rank_networks(embeddings, scores=options.scores, groups=groups)
    print(ranking.table())
    print(f"\n{ranking}; {len(samples)} training samples, ± and ranks: 95 % of {ranking.n_draws} halves")
    for note in notes:
        print(f"note: {note}")
    print(f"read in {', '.join(times)}")
