"""What following the rules of `advise` loses where results are known: published tables, and ledgers of `compare`.

HF_TL_REAL_DATA=path/to/data python recipes/benchmarks/check_advice.py
"""

from pathlib import Path

from machine import RESULTS, real_data

from hf_tl.strategies import read_ledgers, read_published, validate


LEDGERS = Path(__file__).resolve().parents[1] / "results" / "strategies"


def main() -> None:
    for name, cells in (
        ("check_advice", read_published(real_data() / "published")),
        ("check_advice_ledgers", read_ledgers(sorted(LEDGERS.glob("*.jsonl")))),
    ):
        if len({cell.dataset for cell in cells}) > 1:  # one dataset has no others to be decided from
            found = validate(cells)
            print(found)
            print(f"wrote {found.save(RESULTS / f'{name}.json').name}\n")


if __name__ == "__main__":
    main()
