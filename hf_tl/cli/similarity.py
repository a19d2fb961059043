"""How near a dataset is to what a network was trained on, and how alike two networks see it, layer by layer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hf_tl.cli.arguments import DATA, MODEL, add_reading
from hf_tl.errors import InputError


if TYPE_CHECKING:
    from hf_tl.data import Samples
    from hf_tl.embedding.embedding import Embedding
    from hf_tl.models import Network

FEWEST = 10  # samples
EXAMPLES = """\
  hf-tl similarity timm/mobilenetv2_100.ra_in1k beans
  hf-tl similarity timm/mobilenetv2_100.ra_in1k source_photos --save-reference source.safetensors
  hf-tl similarity timm/mobilenetv2_100.ra_in1k beans --reference source.safetensors
  hf-tl similarity timm/mobilenetv2_100.ra_in1k beans --against path/to/fine-tuned --plot layers.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("model", help=MODEL)
    add("data", help=f"the target: {DATA}")
    add("--source", metavar="DATA", help="samples of the source, for a distance between the two")
    add("--reference", type=Path, metavar="FILE", help="what --save-reference kept of the source")
    add("--save-reference", type=Path, metavar="FILE", help="keep this data's features as a reference (.safetensors)")
    add("--against", metavar="MODEL", help="another network: CKA of its layers with those of the first, on this data")
    plot_help = "a picture (.png, .svg or .pdf): with --against its map, else of target and source"
    add("--plot", type=Path, metavar="FILE", help=plot_help)
    add("--samples", type=int, default=1000, help="training samples that are read (default %(default)s)")
    add_reading(parser, recipe=False, problem=False)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    import numpy as np

    from hf_tl.analysis.cka import compare_layers
    from hf_tl.analysis.similarity import Reference, compare_domains, plot_domains, read_source_signs
    from hf_tl.embedding.batches import BATCH_SIZE
    from hf_tl.models import find_modality, load_network
    from hf_tl.plots import check_picture

    if options.source is not None and options.reference is not None:
        raise InputError("give --source or --reference, not both")
    if options.plot is not None:
        check_picture(options.plot)
    if options.samples < FEWEST:
        raise InputError(f"--samples should be {FEWEST} or more, got {options.samples}")
    if options.against is not None:
        find_modality(options.against)  # a name that is misspelt is found before time is spent
    reference = None if options.reference is None else Reference.load(options.reference)
    if options.save_reference is not None and not options.save_reference.parent.is_dir():
        raise InputError(f"there is no folder {str(options.save_reference.parent)!r} for --save-reference")
    sizes = {"image_size": options.image_size, "max_length": options.max_length}
    network = load_network(options.model, **sizes)
    samples = _samples(options.data, network.modality, options)
    source = None if options.source is None else _samples(options.source, network.modality, options)
    target = _read(network, samples, options, taps=["last"])
    batch_size = BATCH_SIZE if options.batch_size == "auto" else options.batch_size
    signs = read_source_signs(network, samples, batch_size=batch_size)
    print(signs)
    if source is not None:
        reference = Reference.of(_read(network, source, options, ["last"]))
    if reference is not None:
        print(compare_domains(target, reference))
    if options.save_reference is not None:
        print(f"wrote {Reference.of(target).save(options.save_reference)}")
    if options.against is not None:
        first = _read(network, samples, options, taps=["auto"])
        other = load_network(options.against, **sizes)
        found = compare_layers(first, _read(other, samples, options, taps=["auto"]))
        known = np.where(np.isfinite(found.values), found.values, -np.inf)  # of too few samples it may be unknown
        nearest = known.argmax(axis=1)
        depths = [
            f"{found.rows[i]} ~ {found.columns[nearest[i]]} {known[i].max():.2f}"
            for i in _few(len(nearest))
            if np.isfinite(known[i].max())
        ]
        print(f"CKA, each layer with the most similar one of the other network: {'; '.join(depths)}")
        if options.plot is not None:
            names = (Path(options.model).name, Path(options.against).name)
            title = f"{Path(options.data).name}: {names[0]} and {names[1]}"
            print(f"wrote {found.plot(options.plot, title=title, names=names)}")
    elif options.plot is not None:
        network_name, data = Path(options.model).name, Path(options.data).name
        if reference is not None:
            title = f"{data} (target) and {Path(options.source or options.reference).name} (source) in {network_name}"
            print(f"wrote {plot_domains(options.plot, target, reference, title=title)}")
        else:
            print(f"wrote {signs.plot(options.plot, title=f'{data} in {network_name}')}")


def _few(n: int) -> list[int]:
    """Up to six places from first to last."""
    return sorted({round(k * (n - 1) / 5) for k in range(6)})


def _samples(name: str, modality: str, options: argparse.Namespace) -> Samples:
    from hf_tl.data import load_samples

    samples = load_samples(
        name, modality=modality, label=options.label, input_column=options.input, config=options.config
    )
    if len(samples) < FEWEST:
        raise InputError(f"{name!r} has {len(samples)} samples; a comparison takes {FEWEST} or more")
    return samples.sample(options.samples)


def _read(network: Network, samples: Samples, options: argparse.Namespace, taps: list[str]) -> Embedding:
    from hf_tl.embedding.full_network import FullNetworkEmbedding
    from hf_tl.embedding.recipe import RECIPES

    reader = FullNetworkEmbedding(
        network,
        recipe=RECIPES["raw"],
        taps=taps,
        batch_size=options.batch_size,
        device=options.device,
        on_bad_samples=options.on_bad_samples,
    )
    return reader.activations(samples)
