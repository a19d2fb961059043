"""Do training scripts take hf_tl in with two added lines? Script x pillar x (one process, two processes).

    python recipes/benchmarks/dropin_matrix.py CHECKOUT... [--scripts NAME...] [--pillars NAME...] [--minutes N]

CHECKOUT is a folder in which the official examples lie somewhere, such as clones of transformers and of accelerate
(`git clone --depth 1`); without any, only the scripts of tests/dropin/scripts are tried. Each script is copied with
one import and one line added, shown with --diff, and runs on tiny networks and data, without the Hub: under `python`,
and under `accelerate launch` as two processes over gloo. A cell is green where the script ended well and

    policy     frozen parameters are bit for bit what they were, tuned ones are not;
    lora       the same, of the network's weights and of the adapter;
    embedding  accuracies of the network in training were measured;

and, with two processes, both were there and ended with the same parameters. "refused" is a cell that ended at once
with the sentence that says why it cannot work. Good cells are kept in --ledger and not repeated, unless the script or
its lines have changed; the rows are kept in results/ when every script that was asked for is there. With --launcher
fork the two processes are forked with the environment that `accelerate launch` gives, which saves its imports in each.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dropin_scripts import OFFICIAL, PILLARS, SCRIPTS, Script, added_lines, difference
from dropin_world import environment, make_world
from machine import RESULTS, keep

from hf_tl.table import format_table


HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OWN = ROOT / "tests" / "dropin" / "scripts"
TWO = ROOT / "recipes" / "configs" / "two_processes_cpu.yaml"
AT_ONCE = 12  # cells of one launch
GOOD = ("green", "refused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path, nargs="*", metavar="CHECKOUT")
    parser.add_argument("--scripts", nargs="+", choices=SCRIPTS, default=list(SCRIPTS), metavar="NAME")
    parser.add_argument("--pillars", nargs="+", choices=("none", *PILLARS), default=list(PILLARS))
    parser.add_argument("--processes", nargs="+", type=int, choices=(1, 2), default=[1, 2])
    parser.add_argument("--launcher", choices=("accelerate", "fork"), default="accelerate")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no dozen of cells after so many")
    parser.add_argument("--diff", action="store_true", help="print the added lines of every script and pillar")
    parser.add_argument("--world", type=Path, help="folder of tiny networks and data; a temporary one by default")
    parser.add_argument("--ledger", type=Path, default=Path("runs/dropin_matrix.jsonl"))
    options = parser.parse_args()
    paths, missing = find_scripts(options)
    found = {name: path.read_text(encoding="utf-8") for name, path in paths.items()}
    for name, reason in missing.items():
        print(f"left out {name}: {reason}")
    cells = [(name, pillar, n) for name in found for pillar in options.pillars for n in options.processes]
    if options.diff:
        for name, pillar, _ in dict.fromkeys((name, pillar, 0) for name, pillar, _ in cells):
            print(difference(found[name], SCRIPTS[name].patched(found[name], pillar), f"{name}.py"))
    options.ledger.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dropin-") as temporary:
        done = run_cells(cells, found, paths, options, options.world or Path(temporary))
    report(cells, done, found, missing, launcher=options.launcher)


def find_scripts(options: argparse.Namespace) -> tuple[dict[str, Path], dict[str, str]]:
    """Every script that is there; why the others are not."""
    found, missing = {}, {}
    for name in options.scripts:
        script = SCRIPTS[name]
        places = options.checkouts if script in OFFICIAL else [OWN]
        paths = sorted(path for place in places for path in place.rglob(f"{name}.py"))
        paths = [path for path in paths if path.as_posix().endswith(script.path) and "/legacy/" not in path.as_posix()]
        if not paths:
            missing[name] = f"not below any CHECKOUT; it is one of {script.origin}'s examples"
        elif script.needs is not None and importlib.util.find_spec(script.needs) is None:
            missing[name] = f"needs {script.needs}, which is not installed"
        else:
            found[name] = paths[0]
    return found, missing


def run_cells(
    cells: list, found: dict[str, str], paths: dict[str, Path], options: argparse.Namespace, world: Path
) -> dict:
    """Runs what the ledger does not have; returns cell -> its results."""
    done, start = {}, time.monotonic()
    if options.ledger.is_file():
        for line in options.ledger.read_text().splitlines():
            result = json.loads(line)
            if result["outcome"] in GOOD:
                done[result["key"]] = result
    wanted = [cell for cell in cells if key(cell, found) not in done]
    if wanted:
        made = (world / "home").is_dir() and (world / "pets").is_dir()
        variables = environment(world / "home") if made else make_world(world)
    for processes in options.processes:
        mine = [cell for cell in wanted if cell[2] == processes]
        for some in [mine[i : i + AT_ONCE] for i in range(0, len(mine), AT_ONCE)]:
            if time.monotonic() - start > 60 * options.minutes:
                break
            for cell, result in run_some(
                some, found, paths, variables, world, processes=processes, launcher=options.launcher
            ).items():
                print(f"{cell[0]}, {cell[1]}, {cell[2]} process(es): {result['outcome']}", flush=True)
                done[result["key"]] = result
                with options.ledger.open("a") as file:
                    file.write(json.dumps(result) + "\n")
    return {cell: done.get(key(cell, found)) for cell in cells}


def key(cell: tuple, found: dict[str, str]) -> str:
    """A cell, and the text that ran in it."""
    name, pillar, processes = cell
    text = SCRIPTS[name].patched(found[name], pillar)
    return f"{name} {pillar} {processes} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def run_some(
    cells: list,
    found: dict[str, str],
    paths: dict[str, Path],
    variables: dict[str, str],
    world: Path,
    *,
    processes: int,
    launcher: str,
) -> dict[tuple, dict]:
    """Runs scripts one after the other with one launch; cell -> "green", "refused", or what was wrong."""
    results = {}
    with tempfile.TemporaryDirectory(prefix="cells-") as temporary:
        orders = []
        for number, (name, pillar, _) in enumerate(cells):
            place = Path(temporary) / str(number)
            place.mkdir()
            for thing in world.iterdir():
                (place / thing.name).symlink_to(thing.resolve())
            (place / f"{name}.py").write_text(SCRIPTS[name].patched(found[name], pillar), encoding="utf-8")
            order = {"folder": str(place), "script": f"{name}.py", "words": SCRIPTS[name].words()}
            orders.append(order | {"beside": str(paths[name].parent.resolve()), "port": free_port()})
        (Path(temporary) / "orders.json").write_text(json.dumps(orders))
        launch, ranks = [sys.executable], []
        variables = variables | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])}
        if processes == 2 and launcher == "fork":
            ranks = ["2"]
        elif processes == 2:
            launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(TWO)]
            variables = variables | {"ACCELERATE_USE_CPU": "true"}
        command = [*launch, str(HERE / "dropin_cell.py"), str(Path(temporary) / "orders.json"), *ranks]
        subprocess.run(command, cwd=temporary, env=variables, check=True)
        for number, cell in enumerate(cells):
            place = Path(temporary) / str(number)
            ranks = [json.loads(path.read_text()) for path in sorted(place.glob("[01].json"))]
            outcome = judge(SCRIPTS[cell[0]], cell[1], processes, ranks)
            adapter = (place / "out" / "adapter_config.json").is_file()
            results[cell] = {"key": key(cell, found), "outcome": outcome, "saved as an adapter": adapter}
            if outcome not in GOOD:
                print("\n".join(path.read_text()[-3000:] for path in sorted(place.glob("[01].txt"))))
    return results


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def judge(script: Script, pillar: str, processes: int, ranks: list[dict]) -> str:
    """Whether the pillar did its work in every process; else what it did not do."""
    if len(ranks) != processes or any(rank["processes"] != processes for rank in ranks):
        return f"{len(ranks)} of {processes} processes ended, of {[rank['processes'] for rank in ranks]}"
    errors = [rank["error"] for rank in ranks if rank["error"] is not None]
    if pillar in script.refused:
        said = errors and all(script.refused[pillar] in error for error in errors)
        return "refused" if said and len(errors) == processes else f"should be refused: {errors}"
    if errors:
        return errors[0]
    if pillar == "embedding":
        accuracies = [
            value
            for rank in ranks
            for found in rank["measured"]
            for name, value in found.items()
            if name[:10] == "embedding/"
        ]
        return "green" if accuracies and all(0 <= value <= 1 for value in accuracies) else "nothing was measured"
    if pillar == "none":
        return "green"
    for rank in ranks:
        if not rank.get("frozen") or rank["frozen that moved"]:
            return f"frozen parameters moved: {rank.get('frozen that moved', 'none is frozen')}"
        if not rank["tuned that moved"]:
            return "no tuned parameter moved"
    return "green" if len({rank["digest"] for rank in ranks}) == 1 else "the processes ended with other parameters"


def report(cells: list, done: dict, found: dict[str, str], missing: dict[str, str], *, launcher: str) -> None:
    """Prints the table; keeps it where every script was there."""
    pillars = list(dict.fromkeys(pillar for _, pillar, _ in cells))
    counts = list(dict.fromkeys(n for _, _, n in cells))
    rows, results = [], {}
    for name, text in found.items():
        row = [name]
        results[name] = {
            "origin": SCRIPTS[name].origin,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "launcher": launcher,
        }
        for pillar in pillars:
            shown = [done[name, pillar, n]["outcome"] if done[name, pillar, n] else "not run" for n in counts]
            change = difference(text, SCRIPTS[name].patched(text, pillar), f"{name}.py")
            added = [line[1:].strip() for line in change.splitlines() if line[:1] == "+" and line[:3] != "+++"]
            row.append(f"+{added_lines(change)}: {', '.join(shown)}")
            results[name][pillar] = {"added": added} | {
                f"{n} process(es)": done[name, pillar, n]["outcome"] if done[name, pillar, n] else "not run"
                for n in counts
            }
        rows.append(row)
    print(format_table(["script", *pillars], rows))
    ended = [result["outcome"] for result in done.values() if result is not None]
    good = sum(outcome in GOOD for outcome in ended)
    print(f"{good} of {len(cells)} cells as they should be, {len(cells) - len(ended)} still to be run")
    if not missing and set(pillars) >= set(PILLARS) and counts == [1, 2]:
        path = RESULTS / "dropin_matrix.json"
        before = json.loads(path.read_text())["results"] if path.is_file() else {}
        results = {name: (before | results)[name] for name in SCRIPTS if name in before | results}
        print(markdown(results))
        keep("dropin_matrix", {"results": results})
    sys.exit(0 if good == len(ended) else 1)


def markdown(results: dict) -> str:
    """The table of docs/dropin.md."""
    header = [f"{pillar}, {n}" for pillar in PILLARS for n in (1, 2)]
    lines = [f"| script | {' | '.join(header)} |", f"|{'---|' * (1 + len(header))}"]
    for name, found in results.items():
        cells = [found[pillar][f"{n} process(es)"] for pillar in PILLARS for n in (1, 2)]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
