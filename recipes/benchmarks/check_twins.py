"""How many planted copies an audit finds among photos, what else it finds, and how long it takes.

HF_TL_REAL_DATA=... python recipes/benchmarks/check_twins.py

1 % of the photos of each set are copied in six ways: as they are, as JPEG of quality 75 and 30, half size, mirrored
and grey. Pairs that are true: the planted ones, and those of twins/twins_flowers12_dtd10.csv, looked at by eye.
"""

import csv
import io
import time
from pathlib import Path

import numpy as np
from machine import keep, real_data
from PIL import Image, ImageOps

from hf_tl import Samples, find_twins, format_table, load_task
from hf_tl.inputs import read_image


SETS = ("flowers12", "dtd10")
SHARE = 0.01
TIMED = 2000


def encoded(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream)


WAYS = {
    "exact": lambda image: image,
    "JPEG 75": lambda image: encoded(image, 75),
    "JPEG 30": lambda image: encoded(image, 30),
    "half size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "mirrored": ImageOps.mirror,
    "grey": ImageOps.grayscale,
}


def true_pairs(name: str) -> set[frozenset]:
    """Those that were looked at."""
    with (real_data() / "twins" / "twins_flowers12_dtd10.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["set"] == name]
    return {frozenset((row[f"{end}_split"], int(row[f"{end}_row"])) for end in "ab") for row in rows}


def check(name: str) -> tuple[list[list], list[float]]:
    task = load_task(str(real_data() / "sets" / name), modality="image")
    splits = [task.train, task.test]
    photos = [(split.name, i) for split in splits for i in range(len(split))]
    n = max(1, round(SHARE * len(photos)))
    rng = np.random.default_rng(0)
    planted, truth = [], {way: set() for way in WAYS}
    for way, change in WAYS.items():
        for k in rng.choice(len(photos), n, replace=False):
            split, i = photos[k]
            truth[way].add(frozenset([(split, i), ("planted", len(planted))]))
            planted.append({"image": change(read_image({s.name: s for s in splits}[split][i]))})
    start, cpu = time.perf_counter(), time.process_time()
    twins = find_twins([*splits, Samples(planted, "image", name="planted")], modality="image")
    seconds = [time.perf_counter() - start, time.process_time() - cpu, len(photos) + len(planted)]
    found = {frozenset([pair.first, pair.second]) for pair in twins.pairs if pair.kind != "recoloured"}
    same = {}  # copies of a photo, and of its twins, are copies of one another
    for pair in [*true_pairs(name), *(one for pairs in truth.values() for one in pairs)]:
        ends = set().union(*(same.get(end, {end}) for end in pair))
        same.update(dict.fromkeys(ends, ends))
    true = {pair for pair in found if same.get(next(iter(pair)), set()) >= pair}
    rows = [[name, way, f"{len(pairs & found)} of {len(pairs)}"] for way, pairs in truth.items()]
    rows.append([name, "all planted", f"{sum(len(p & found) for p in truth.values())} of {len(planted)}"])
    rows.append([name, "true of all found", f"{len(true)} of {len(found)}"])
    rows.append([name, "recoloured, apart", str(sum(pair.kind == "recoloured" for pair in twins.pairs))])
    return rows, seconds


def main() -> None:
    rows, times = [], []
    for name in SETS:
        found, seconds = check(name)
        print(format_table(["set", "copies", "found"], found), flush=True)
        rows += found
        times.append(seconds)
    wall, cpu, photos = np.sum(times, axis=0).tolist()
    each = TIMED / photos
    print(
        f"{photos:.0f} photos: {wall:.0f} s, {cpu:.0f} CPU s; {TIMED} take {wall * each:.0f} s, {cpu * each:.0f} CPU s"
    )
    keep(Path(__file__).stem, {"rows": rows, "seconds": wall, "cpu_seconds": cpu, "photos": photos})


if __name__ == "__main__":
    main()
