"""Fits strategies of transfer at equal effort on the same samples, prints curves, differences, crossover and cost."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_tl.cli.arguments import DATA, MODEL, REPORT_TO
from hf_tl.errors import InputError
from hf_tl.files import make_folder, parse_json, read_untrusted, write_json
from hf_tl.strategies.reporting import BACKENDS


if TYPE_CHECKING:
    from hf_tl.cluster import RayExecutor


NAMES = ("last layer", "full network", "linear probe", "LoRA", "DoRA", "split", "measured cut", "LP-FT",
         "full fine-tuning", "from scratch")  # fmt: skip
SETTINGS, LARGEST = "settings.json", 10**6  # bytes
EXAMPLES = """\
  hf-tl compare timm/mobilenetv2_100.ra_in1k beans --image-size 96 --out runs/beans
  hf-tl compare path/to/model path/to/data --strategies "last layer" split "full fine-tuning" --shots 2 5 10 20
  hf-tl compare path/to/model path/to/data --budget 2h --country ESP
  hf-tl compare path/to/model path/to/data --search optuna --trials 10
  hf-tl compare path/to/model path/to/data --ray auto --gpus 1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("model", help=MODEL)
    add("data", help=DATA)
    names_help = f"{', '.join(NAMES)}, or that of a plug-in (default: all but DoRA, measured cut, from scratch)"
    add("--strategies", nargs="+", metavar="NAME", help=names_help)
    add("--shots", nargs="+", type=int, metavar="N", help="training samples per class (default 1 2 5 10 20)")
    add("--seeds", type=int, default=3, help="draws for each number of samples (default %(default)s)")
    add("--budget", metavar="TIME", help="no run is begun after it: 90s, 10min, 2h (default: none)")
    add("--epochs", type=int, default=20, help="of each training, at most (default %(default)s)")
    add("--trials", type=int, default=3, help="settings that each strategy may try (default %(default)s)")
    search_help = "who proposes learning rates: grid, or a backend of Trainer's own search (default %(default)s)"
    add("--search", choices=("grid", "optuna", "ray"), default="grid", help=search_help)
    add("--batch-size", type=int, default=16, help="samples per step (default %(default)s)")
    bf16_help = "whether trainings compute in bfloat16; auto for what a few steps show to be fastest (default no)"
    add("--bf16", choices=("auto", "yes", "no"), default="no", help=bf16_help)
    add("--image-size", type=int, help="side of the square images in pixels")
    add("--country", help="where it runs, for the CO2: ESP, Spain")
    add("--part", default="1/1", metavar="I/K", help="this process does every K-th run, from the I-th on")
    ray_help = "do the runs on a Ray cluster: that of an address, or the one of this environment, else of this machine"
    add("--ray", nargs="?", const="", metavar="ADDRESS", help=ray_help)
    add("--gpus", type=float, default=0.0, help="GPUs of each run on Ray (default %(default)g)")
    add("--report-to", nargs="+", choices=BACKENDS, default=(), help=REPORT_TO)
    add("--out", type=Path, default=Path("runs/compare"), help="folder of the ledger (default %(default)s)")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from hf_tl.strategies.compare import SHOTS, STRATEGIES, compare
    from hf_tl.strategies.report import write_report
    from hf_tl.strategies.strategy import Effort

    effort = Effort(
        epochs=options.epochs,
        trials=options.trials,
        batch_size=options.batch_size,
        search=options.search,
        bf16="auto" if options.bf16 == "auto" else options.bf16 == "yes",
    )
    settings = {
        "strategies": list(options.strategies or STRATEGIES),
        "shots": list(options.shots or SHOTS),
        "seeds": options.seeds,
        "image_size": options.image_size,
        "country": options.country,
    }
    part = _read_part(options.part)
    if options.gpus and options.ray is None:
        raise InputError(
            "--gpus is for runs on a Ray cluster, with --ray; without it, runs take the GPU that is there"
        )
    make_folder(options.out)
    said = {"model": options.model, "data": options.data, **settings, "effort": effort.to_dict()}
    write_json(options.out / SETTINGS, said)
    found = compare(
        options.model,
        options.data,
        **settings,
        effort=effort,
        out=options.out,
        budget=options.budget,
        part=part,
        report_to=options.report_to,
        executor=None if options.ray is None else _on_ray(options.ray, options.gpus),
    )
    print(found.table())
    written = [found.save(options.out / "comparison.json")]
    if found.block[0]:
        written.append(write_report(found, options.out / "report.html"))
    print(f"wrote {' and '.join(str(path) for path in [options.out / 'ledger.jsonl', *written])}")


def read_settings(folder: Path) -> dict[str, Any]:
    """What a comparison in a folder was called with: model, data and the arguments of `compare`.

    Raises:
        InputError: no folder of `hf-tl compare`, or settings that are none of its.
    """
    from hf_tl.strategies.strategy import Effort

    path = folder / SETTINGS
    if not path.is_file():
        raise InputError(
            f"{str(folder)!r} is no folder of `hf-tl compare`: it has no {SETTINGS}; `hf-tl advise` writes its report "
            "by itself"
        )
    said = parse_json(read_untrusted(path, largest=LARGEST), path)
    kinds = {"model": str, "data": str, "strategies": list, "shots": list, "seeds": int, "effort": dict}
    optional = {"image_size": int, "country": str}
    wrong = [name for name, kind in kinds.items() if not isinstance(said.get(name), kind)]
    wrong += [name for name, kind in optional.items() if not isinstance(said.get(name), (kind, type(None)))]
    wrong += sorted(said.keys() - kinds.keys() - optional.keys())
    if not wrong:
        spent, names = said["effort"], said["strategies"]
        whole = all(type(value) is int for name, value in spent.items() if name not in ("search", "bf16"))
        wrong += ["shots"] * any(type(value) is not int for value in said["shots"])
        wrong += ["effort"] * (not whole or spent.keys() - {"search", "bf16"} != Effort().to_dict().keys())
        wrong += ["strategies"] * any(not isinstance(name, str) or ":" in name for name in names)  # none is imported
    if wrong:
        raise InputError(f"{str(path)!r} is none of `hf-tl compare`: {wrong[0]!r} is missing, unknown or of no use")
    return {**said, "effort": Effort(**said["effort"])}


def _on_ray(address: str, num_gpus: float) -> RayExecutor:
    from hf_tl.cluster import RayExecutor

    return RayExecutor(address=address or None, num_gpus=num_gpus)


def _read_part(text: str) -> tuple[int, int]:
    own, _, all_parts = text.partition("/")
    if not (own.isdecimal() and all_parts.isdecimal() and 1 <= int(own) <= int(all_parts)):
        raise InputError(f"--part should be such as 2/4, the second of four processes, got {text!r}")
    return int(own) - 1, int(all_parts)
