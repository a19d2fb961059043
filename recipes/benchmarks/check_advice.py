"""What following the rules of `advise` loses where results are known: published tables, and ledgers of `compare`.

HF_TL_REAL_DATA=path/to/data python recipes/benchmarks/check_advice.py [--ledgers FOLDER]

The tables go into docs/decide.md too.
"""

import argparse
from pathlib import Path

from machine import RESULTS, real_data

from hf_tl.strategies import Validation, read_ledgers, read_published, validate
from hf_tl.strategies.published import in_common
from hf_tl.strategies.validation import ADVICE


LEDGERS = Path(__file__).resolve().parents[1] / "results" / "strategies"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "decide.md"
BEGIN, END = "<!-- check_advice.py: begin -->", "<!-- check_advice.py: end -->"
SHORT = {
    "geobench2_frozen_vs_full_ft_runs": "GEO-Bench-2",
    "vtab1k_vitb16_19sets": "VTAB-1k",
    "fgvc_vitb16_5sets": "fine-grained",
    "by winner": "of each winner alike",
    "coverage": "80 % intervals hold",
}
LEFT_OUT = ("90 % of cells", "within delta")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ledgers", type=Path, default=LEDGERS, metavar="FOLDER", help="NAME.jsonl each")
    paths = sorted(parser.parse_args().ledgers.glob("*.jsonl"), key=lambda path: (len(path.stem), path.stem))
    published, ledgers = read_published(real_data() / "published"), read_ledgers(paths)
    said = [BEGIN]
    for name, title, cells in (
        ("check_advice_ledgers", "Our own ledgers, all strategies", ledgers),
        ("check_advice", "Published tables and, by the strategies that these have, our ledgers",
         [*published, *in_common(ledgers)]),
    ):  # fmt: skip
        found = validate(cells)
        print(f"{title}: {found}")
        print(f"wrote {found.save(RESULTS / f'{name}.json').name}\n")
        said += ["", f"{title}: {in_words(found)}", "", *in_markdown(found)]
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    if not rest:
        raise SystemExit(f"{DOCS} should have the lines {BEGIN} and {END}")
    DOCS.write_text(before + "\n".join([*said, "", END]) + rest.partition(END)[2], encoding="utf-8")


def in_words(found: Validation) -> str:
    won = ", ".join(f"{name} {found.winners.count(name)}" for name in sorted(set(found.winners)))
    lost = "; ".join(f"{rule} in {len(found.losses(rule))}" for rule in found.rules if rule in ADVICE)
    return f"{len(found.cells)} cells, won by {won}. More than a point is lost by {lost}."


def in_markdown(found: Validation) -> list[str]:
    rows = found.summary()
    names = [name for name in rows[0] if name not in LEFT_OUT]
    lines = ["| " + " | ".join(SHORT.get(name, name) for name in names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [row["rule"]]
        for name in names[1:]:
            value = row[name]
            shares = name in ("spent", "coverage")
            cells.append("" if value is None else f"{100 * value:.0f} %" if shares else f"{value:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
