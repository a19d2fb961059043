"""Looks into a LoRA adapter (what it learnt, whether PEFT agrees, merged, smaller, against another), and pushes it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from hf_tl.cli.arguments import MODEL
from hf_tl.errors import InputError
from hf_tl.files import make_folder
from hf_tl.table import format_table


EXAMPLES = """\
  hf-tl adapter inspect path/to/adapter --model path/to/base --plot runs/spectra.png
  hf-tl adapter verify path/to/adapter --model path/to/base
  hf-tl adapter merge path/to/adapter --model path/to/base --out runs/merged
  hf-tl adapter resize path/to/adapter --keep 0.99 --out runs/smaller
  hf-tl adapter diff path/to/adapter runs/smaller
  hf-tl adapter push path/to/adapter user/name --base-model user/base --dataset user/films --dry-run"""
ADAPTER = "folder with adapter_config.json and adapter_model.safetensors, or a Hub id"

_BOUND = 1e-4  # relative: above it, PEFT and hf_tl do not mean the same


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's actions and their arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, info: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=info, description=info)
        added.add_argument("adapter", help=ADAPTER)
        added.set_defaults(action_run=run)
        return added

    add = action("inspect", "size, spectrum and use of the rank of every layer's update", _inspect).add_argument
    add("--model", help=f"the network it is for, for norms relative to its weights: {MODEL}")
    add("--plot", type=Path, help="also draw it into this picture")
    add = action("verify", "the largest difference between peft and hf_tl on this adapter", _verify).add_argument
    add("--model", required=True, help=f"the network it is for: {MODEL}")
    add = action("merge", "the network with the adapter in its weights", _merge).add_argument
    add("--model", required=True, help=f"the network it is for: {MODEL}")
    add("--out", type=Path, required=True, help="folder for the network")
    names_help = "names of the classes, in the order of the outputs, where the base network does not name them"
    add("--class-names", nargs="+", metavar="NAME", help=names_help)
    add = action("resize", "the adapter cut to a smaller rank, and the error of that", _resize).add_argument
    add("--rank", type=int, help="the new rank of every layer")
    add("--keep", type=float, help="instead, the share of every update's squared norm to keep, such as 0.99")
    add("--out", type=Path, required=True, help="folder for the new adapter")
    add = action("diff", "how two adapters of one network differ, layer by layer", _diff).add_argument
    add("other", help="the other adapter")
    help_of_push = "the folder and a model card to the Hub; the token is from HF_TOKEN or `hf auth login`"
    add_push(action("push", help_of_push, _push).add_argument)


def add_push(add: Callable) -> None:
    """The arguments of a push."""
    add("repo", metavar="USER/NAME", help="model repository, made where there is none")
    add("--base-model", metavar="HUB_ID", help="the network, where it was loaded from a folder of this machine")
    add("--private", action="store_true", help="a repository that is made is private")
    add("--revision", metavar="BRANCH", help="branch, made where there is none (default main)")
    add("--dataset", action="append", default=[], metavar="HUB_ID", help="what it was trained on; may be repeated")
    add("--result", action="append", default=[], metavar="METRIC=VALUE", help="on the first dataset; may be repeated")
    add("--task", metavar="NAME", help="of the results, where the network's head does not tell: image-classification")
    add("--message", default="Add LoRA adapter", help="of the commit (default %(default)s)")
    add("--dry-run", action="store_true", help="show the card and what would be sent, and send nothing")


def read_results(words: Sequence[str]) -> dict[str, float]:
    """What --result was given, metric -> value.

    Raises:
        InputError: anything else than METRIC=VALUE.
    """
    found = {}
    for word in words:
        metric, _, value = word.partition("=")
        try:
            found[metric.strip()] = float(value)
        except ValueError as error:
            raise InputError(f"--result takes METRIC=VALUE, such as accuracy=0.93, got {word!r}") from error
    return found


def run(options: argparse.Namespace) -> None:
    """Runs the action."""
    options.action_run(options)


def _inspect(options: argparse.Namespace) -> None:
    from hf_tl.analysis.weight_change import measure_updates, plot_spectra, rank_advice, spectrum_table
    from hf_tl.lora.adapter import read_adapter
    from hf_tl.lora.load import load_base
    from hf_tl.lora.placement import base_weights

    adapter = read_adapter(options.adapter)
    weights = None if options.model is None else base_weights(adapter, load_base(options.model, adapter))
    found = measure_updates(adapter, weights)
    print(spectrum_table(found))
    print()
    for sentence in rank_advice(found):
        print(sentence)
    if adapter.others:
        n = sum(tensor.numel() for tensor in adapter.others.values())
        print(f"beside the updates, {len(adapter.others)} whole tensors with {n:,} values")
    if options.plot is not None:
        make_folder(options.plot.parent)
        print(f"wrote {plot_spectra(found, options.plot)}")


def _verify(options: argparse.Namespace) -> None:
    from hf_tl.analysis.verify_adapter import verification_table, verify_adapter
    from hf_tl.example import dummy_batch
    from hf_tl.lora.adapter import read_adapter
    from hf_tl.lora.load import load_base

    model = load_base(options.model, read_adapter(options.adapter))
    found = verify_adapter(model, options.adapter, dummy_batch(model))
    print(verification_table(found))
    worst = max(found, key=lambda one: one.relative)
    if worst.relative > _BOUND:
        raise InputError(
            f"peft and hf_tl differ by {worst.relative:.1e} of the largest value in {worst.what}, at {worst.where!r}; "
            f"expected at most {_BOUND:g}: please report this adapter"
        )
    print("\npeft and hf_tl load the same network from it")


def _merge(options: argparse.Namespace) -> None:
    from hf_tl.checkpoint import name_outputs, save_model, save_processor
    from hf_tl.example import dummy_batch
    from hf_tl.lora.adapter import read_adapter
    from hf_tl.lora.load import load_base, put_adapter
    from hf_tl.lora.merge import delete_adapter, merge_adapter

    adapter = read_adapter(options.adapter)
    model = load_base(options.model, adapter, dtype="auto")
    named = name_outputs(model, options.class_names or ())
    put_adapter(model, adapter)
    make_folder(options.out)
    merge = merge_adapter(model, safe_merge=True, reversible=False, example=dummy_batch(model))
    delete_adapter(model, merge=True)
    save_model(model, options.out, n_labels=adapter.n_labels, class_names=options.class_names or ())
    note = "" if named or adapter.n_labels is None else "; its classes have no names, which --class-names gives"
    try:
        save_processor(options.model, options.out, model=model)
    except InputError as error:
        note += f"; {error}, so none stands beside it"
    print(f"merged {merge.layers} layers; on a dummy batch the output moved by {merge.largest_change:.2e} at most")
    print(f"wrote {options.out}{note}")


def _resize(options: argparse.Namespace) -> None:
    from hf_tl.lora.adapter import read_adapter, write_adapter
    from hf_tl.lora.combine import resize_adapter, resize_table

    adapter = read_adapter(options.adapter)
    resized, report = resize_adapter(adapter, rank=options.rank, keep=options.keep)
    write_adapter(resized, options.out)
    print(resize_table(report))
    worst = max(report, key=lambda layer: layer.error)
    print(f"\n{adapter.n_parameters:,} values before, {resized.n_parameters:,} after")
    print(f"largest relative error of an update: {worst.error:.2e}, in {worst.name}")
    print(f"wrote {options.out}")


def _diff(options: argparse.Namespace) -> None:
    from hf_tl.analysis.weight_change import compare_adapters, difference_table
    from hf_tl.lora.adapter import read_adapter

    found = compare_adapters(read_adapter(options.adapter), read_adapter(options.other))
    print(difference_table(found))
    print()
    for name, apart in found.others.items():
        if apart != 0:
            print(f"{name}: {apart if isinstance(apart, str) else f'{apart:.2e} apart'}")
    for name, (first, second) in found.options.items():
        print(f"option {name}: {first!r} and {second!r}")
    print("the two give the same network" if found.same else "the two give different networks")


def _push(options: argparse.Namespace) -> None:
    from hf_tl.card import CardInfo, in_bytes
    from hf_tl.lora.push import push_adapter

    info = CardInfo(datasets=options.dataset, results=read_results(options.result), task=options.task)
    done = push_adapter(
        options.adapter,
        options.repo,
        base_model=options.base_model,
        info=info,
        private=True if options.private else None,
        revision=options.revision,
        message=options.message,
        dry_run=options.dry_run,
    )
    print(format_table(["file", "size"], [[name, in_bytes(size)] for name, size in done.sizes.items()]))
    if options.dry_run:
        print(f"\n{done.card}\nfor {done.repo_id}; nothing was sent")
    else:
        print(f"\npushed {done.url}")
