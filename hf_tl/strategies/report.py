"""A report of advice or of a comparison: one HTML file with its figures inside, which opens without a network."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from hf_tl import plots
from hf_tl.errors import InputError
from hf_tl.files import make_folder, write_whole
from hf_tl.probes.learning_curve import find_style
from hf_tl.strategies.advice import Advice
from hf_tl.strategies.comparison import Comparison
from hf_tl.strategies.ledger import Run
from hf_tl.strategies.mistakes import Mistake
from hf_tl.strategies.portrait import Portrait
from hf_tl.strategies.zones import Zones


STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.4rem}h2{font-size:1.15rem;margin-top:2rem}h3{font-size:1rem}
.verdict{font-size:1.15rem;border-left:.4rem solid #1f4e8c;
padding:.6rem 1rem;background:#f2f6fb}svg{width:100%;height:auto}figure{margin:0}.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.85rem}td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;
text-align:left}td:nth-child(5):last-child{min-width:9rem}figure{overflow-x:auto}figure svg{min-width:22rem}
section>img{max-width:100%;height:auto}
.wall{display:flex;flex-wrap:wrap;gap:.5rem}.wall div{width:7.2rem;font-size:.72rem;line-height:1.25}
.wall img{width:7rem;height:7rem;object-fit:cover;display:block}.wall blockquote{margin:0;font-style:italic}
pre{background:#f6f6f6;padding:.8rem;overflow-x:auto;font-size:.8rem;white-space:pre-wrap;overflow-wrap:anywhere}
@media print{body{max-width:none;font-size:11px}figure svg{min-width:0}.wall div{break-inside:avoid}
h1,h2,h3,section>p{break-after:avoid}figure,tr,p,section>img{break-inside:avoid}
figure svg,section>img{display:block;width:auto;max-width:100%;max-height:40vh}section>img{max-height:75vh}}
"""
MEANING = {  # of built-in strategies
    "last layer": "the network stays as it is; a linear SVM learns from what its last layer says",
    "full network": "the network stays as it is; a linear SVM learns from what all its layers say",
    "linear probe": "the network stays as it is; logistic regression learns from what its last layer says",
    "LoRA": "the weights stay as they are; small low-rank matrices beside them are trained, with a new head",
    "DoRA": "as LoRA, with the norms of the weights trained too",
    "split": "the first three quarters of the layers stay as they are; the others are trained, with a new head",
    "measured cut": "layers up to the one that serves the task best stay as they are; worse ones above it start anew",
    "LP-FT": "the new head is trained first, then the whole network, gently",
    "full fine-tuning": "the whole network is trained, from the pre-trained weights",
    "from scratch": "the whole network is trained, from random weights",
}
READ = {  # heading -> how to read what stands there
    "The alternatives": "Accuracy on training samples that were held out, with the range that holds four times out of "
    "five. One fit counts its share of the pass through the network. The probability says how likely it is that a "
    'strategy is worse than the best by more than what you said does not matter. "About" was not measured: it is what '
    "the strategy was worth beside frozen features on other tasks.",
    "Accuracy against the time of one fit": "Up and to the left is better. Where the bars of two strategies overlap "
    "for the most part, these samples do not tell them apart.",
    "Samples per class": "What more labels would bring: the dashed line goes on to twice the samples. Where the curve "
    "is flat, more labels of the same kind change little.",
    "What each layer is worth": "A classifier on each layer alone. Accuracy mostly rises towards the task; layers "
    "that are worse than the best one below them have become too particular to what the network learnt first.",
    "What training changed": "How far each layer moved from its pre-trained weights. Layers that hardly moved could "
    "have been frozen.",
    "Which layers are alike": "1 (yellow): two layers tell the samples apart in the same way; 0 (dark): in ways that "
    "have nothing in common. A bright square on the diagonal is a run of layers that do the same work.",
    "How near the source is": "The statistics that the network kept of the images it was trained on, against those of "
    "your samples: at the dashed lines they are the same. Large shifts speak for training more of the network.",
    "Where the two best differ": "Samples that exactly one of the advised strategy and its nearest rival gets right. "
    "Look for what they have in common, and for wrong labels.",
    "Samples that are copies": "Copies across training and test samples make accuracies look too good; they were not "
    "learnt from.",
    "Accuracy against energy": "Up and to the left is better.",
}
THUMBNAIL = 160  # pixels
COURSE = (  # strategy, accuracies in validation and test, W, h, kg CO2, experiments, hours of people
    ("fine-tuning", "77.46", "73.86", "276", "1,826", "201.5", "480", "4-6"),
    ("feature extraction", "74.65", "72.73", "124", "60", "3.84", "80", "0-1"),
)
Draw = Callable[[Path], object]


def write_report(found: Advice | Comparison, path: str | Path) -> Path:
    """Writes the report as HTML, and beside it the same figures as PNG and all numbers as JSON.

    Args:
        found: what `advise` or `compare` gave.
        path: of the HTML file.

    Raises:
        InputError: another ending, or nothing to report yet.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise InputError(f"a report should be an .html file, got {str(path)!r}")
    make_folder(path.parent)
    sections = _of_advice(found) if isinstance(found, Advice) else _of_comparison(found)
    body = []
    for heading, content in sections:
        inside = content if isinstance(content, str) else _figure(content, path, heading)
        said = f"<p>{escape(READ[heading])}</p>" if heading in READ else ""
        body.append(f"<section><h2>{escape(heading)}</h2>\n{said}{inside}</section>")
    title = escape(found.title)
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><h1>{title}</h1>\n{''.join(body)}</body></html>\n"
    )
    found.save(path.with_suffix(".json"))
    return write_whole(path, page)


def _of_advice(found: Advice) -> list[tuple[str, str | Draw]]:
    sections: list[tuple[str, str | Draw]] = [
        ("What to do", f'<p class="verdict">{escape(found.verdict)}.</p>{_meaning(found)}'),
        ("To run it", f"<pre>{escape(found.code)}</pre>"),
        ("Why", _list(found.evidence)),
        ("The alternatives", _table(*found.cells())),
        ("Accuracy against the time of one fit", lambda file: _draw_alternatives(found, file)),
    ]
    if found.curve is not None:
        curve = found.curve
        sections.append(("Samples per class", lambda file: curve.plot(file, title=found.title, extrapolate=True)))
    if found.zones is not None:
        zones = found.zones
        sections.append(("What each layer is worth", lambda file: _draw_zones(zones, found.title, file)))
        sections.append(("Where to cut", f"<p>{escape(zones.verdict)}.</p>{_table(*zones.cells())}"))
    if any(run.change for run in found.runs):
        sections.append(("What training changed", lambda file: _draw_changes(found.runs, found.title, file)))
    sections += _of_portrait(found.portrait, found.title)
    if found.mistakes:
        sections.append(("Where the two best differ", _wall(found.mistakes)))
    return [
        *sections,
        ("What would change it", _list(found.would_change)),
        ("Ledger", _ledger(found.runs)),
        ("Where the time went", _stages(found)),
        ("Notes", _list([*found.notes, *found.left_out])),
    ]


def _of_portrait(seen: Portrait, title: str) -> list[tuple[str, str | Draw]]:
    """What the network makes of the samples before any training."""
    sections: list[tuple[str, str | Draw]] = []
    similarity, signs = seen.similarity, seen.signs
    if similarity is not None:
        names = ("the network", "the network")
        sections.append(("Which layers are alike", lambda file: similarity.plot(file, title=title, names=names)))
    if signs is not None and signs.mean_shift:
        sections.append(("How near the source is", lambda file: signs.plot(file, title=title)))
    if signs is not None:
        heading = "How near the source is, in words" if signs.mean_shift else "How near the source is"
        sections.append((heading, f"<p>{escape(str(signs))}.</p>"))
    if seen.units is not None:
        heading = f"Images that excite units of {seen.units_of} most"
        sections.append((heading, _image(seen.units, heading)))
    if seen.copies is not None:
        sections.append(("Samples that are copies", _image(seen.copies, "samples that are copies of one another")))
    return sections


def _of_comparison(found: Comparison) -> list[tuple[str, str | Draw]]:
    curve, costs = found.curve, found.costs()
    header = ["strategy", "validation", "test", "W", "h", "CPU h", "Wh", "g CO2", "TFLOP", "runs", "min of people"]
    names = ("validation", "test", "watts", "hours", "cpu_hours", "watt_hours", "grams_co2", "teraflop", "experiments",
             "human_minutes")  # fmt: skip
    rows = [[row["strategy"], *("-" if row[n] is None else f"{row[n]:.3g}" for n in names)] for row in costs]
    return [
        ("What was found", f'<p class="verdict">{escape(curve.best())}</p>{_list(found.crossovers())}'),
        ("Samples per class", lambda file: curve.plot(file, title=found.title)),
        ("Differences in points, paired", f"<pre>{escape(found.differences(found.reference))}</pre>"),
        ("What it cost, the search counted", _table(header, rows)),
        ("Accuracy against energy", lambda file: _draw_costs(found, file)),
        *(
            [("What training changed", lambda file: _draw_changes(found.runs, found.title, file))]
            if any(run.change for run in found.runs)
            else []
        ),
        ("The same table over ten datasets", _course()),
        ("Ledger", _ledger(found.runs)),
        ("Notes", _list([f"{len(found.runs)} of {found.planned} runs", *found.notes])),
    ]


def _meaning(found: Advice) -> str:
    """What the names of the strategies mean, the advised one first."""
    chosen = found.decision.chosen
    names = [chosen, *(one.strategy for one in found.alternatives if one.strategy != chosen)]
    lines = [f"<li><b>{escape(name)}</b>: {escape(MEANING[name])}</li>" for name in names if name in MEANING]
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _draw_alternatives(found: Advice, file: Path) -> None:
    caption = "80 % intervals; filled: measured on this machine; hollow: expected from other tasks"
    with plots.picture(file, title=found.title, size=(5.6, 4.2), caption=caption) as (panel,):
        for i, one in enumerate(one for one in found.alternatives if one.accuracy is not None):
            color, marker, _ = find_style(one.strategy, i)
            accuracy, low, high = one.accuracy or 0.0, one.low or 0.0, one.high or 0.0
            ends, x = [[accuracy - low], [high - accuracy]], [max(one.seconds or 0.0, 0.1)]
            plots.curve(panel, x, [accuracy], color=color, marker=marker, label=one.strategy, errors=ends,
                        hollow=not one.measured)  # fmt: skip
        seconds = [one.seconds for one in found.alternatives if one.seconds is not None]
        plots.axes(panel, x="seconds of one fit", y="accuracy", log="x", x_at=_round_numbers(seconds))
        plots.legend(panel)


def _round_numbers(values: Sequence[float]) -> list[float]:
    """1, 2, 5, 10 ... from below some values to above: a logarithmic axis over less than a decade has no others."""
    steps = [float(f"{digit}e{power}") for power in range(-2, 7) for digit in (1, 2, 5)]
    low, high = max(min(values, default=1.0), 0.1), max([*values, 0.1])
    below, above = [step for step in steps if step <= low], [step for step in steps if step >= high]
    return [step for step in steps if below[-1] <= step <= (above or steps)[0]]


def _draw_zones(found: Zones, title: str, file: Path) -> None:
    caption = f"a linear SVM on each layer alone, {found.n_samples} held-out samples\nbars: standard error to the best"
    with plots.picture(file, title=title, size=(5.6, 4.2), caption=caption) as (panel,):
        n = len(found.names)
        if found.first_worse is not None:
            plots.zone(panel, found.first_worse - 0.5, n - 0.5, color=plots.ORANGE, label="reinit")
        plots.zone(panel, -0.5, found.best + 0.5, color=plots.GREEN, label="freeze")
        above = n if found.first_worse is None else found.first_worse
        if found.best + 1 < above:
            plots.zone(panel, found.best + 0.5, above - 0.5, color=plots.SKY, label="tune")
        plots.curve(panel, range(n), found.accuracy, color=plots.BLUE, marker="o", errors=found.error,
                    label="one layer alone")  # fmt: skip
        plots.axes(panel, x="from data to task", y="accuracy", x_names=found.names)
        plots.legend(panel)


def _draw_changes(runs: Sequence[Run], title: str, file: Path) -> None:
    """The relative change of each layer's weights, of the run of each strategy that saw the most samples."""
    longest: dict[str, Run] = {}
    for run in runs:
        if run.change and (run.strategy not in longest or run.samples_seen > longest[run.strategy].samples_seen):
            longest[run.strategy] = run
    caption = "norm of the change over norm of the weights, the longest run of each strategy; frozen layers: not drawn"
    with plots.picture(file, title=title, size=(5.6, 4.2), caption=caption) as (panel,):
        for i, (name, run) in enumerate(longest.items()):
            color, marker, _ = find_style(name, i)
            depths, relative = np.asarray([pair for pair in run.change.values() if pair[1] > 0] or [[0.0, 0.0]]).T
            plots.curve(panel, depths, relative, color=color, marker=marker, label=name)
        plots.axes(panel, x="depth, from data to task", y="relative change of the weights", log="y")
        plots.legend(panel)


def _course() -> str:
    header = ["strategy", "validation", "test", "W", "h", "kg CO2", "experiments", "h of people"]
    source = (
        "The course's table, VGG16 and ResNets on ten image datasets, every experiment counted (arXiv 2211.04347)."
    )
    return f"<p>{source}</p>{_table(header, COURSE)}"


def _wall(mistakes: Sequence[Mistake]) -> str:
    """Samples with what is said of them, the images inside the page."""
    parts = []
    for right, wrong in dict.fromkeys((one.right, one.wrong) for one in mistakes):
        own = [one for one in mistakes if (one.right, one.wrong) == (right, wrong)]
        cells = "".join(f"<div>{_shown(one)}{escape(one.caption)}</div>" for one in own)
        parts.append(f'<h3>{escape(right)} is right, {escape(wrong)} is not</h3><div class="wall">{cells}</div>')
    return "".join(parts)


def _shown(one: Mistake) -> str:
    if one.image is None:
        return f"<blockquote>{escape(one.text)}</blockquote>" if one.text else ""
    small = one.image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return _image(small, one.caption)


def _image(image: Image.Image, caption: str) -> str:
    """An image inside the page."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img alt="{escape(caption)}" src="data:image/jpeg;base64,{encoded}">'


def _draw_costs(found: Comparison, file: Path) -> None:
    caption = "Wh: filled where measured, hollow where estimated from a power model"
    halves = {name: found.curve.half_widths(name)[-1] for name in found.strategies}
    with plots.picture(file, title=found.title, size=(5.6, 4.2), caption=caption) as (panel,):
        for i, row in enumerate(found.costs()):
            name = row["strategy"]
            color, marker, _ = find_style(name, i)
            accuracy = [found.curve.accuracy[name][-1].mean()]
            x = [max(row["watt_hours"] or 0, 1e-4)]
            plots.curve(panel, x, accuracy, color=color, marker=marker, label=name, errors=[halves[name]],
                        hollow=row["estimated"])  # fmt: skip
        plots.axes(panel, x="Wh of all runs", y=found.curve.metric, log="x")
        plots.legend(panel)


def _figure(draw: Draw, report: Path, heading: str) -> str:
    """Draws a PNG beside the report, and gives the SVG to stand in it."""
    name = "".join(c if c.isalnum() else "-" for c in heading.lower())
    draw(report.with_name(f"{report.stem}-{name}.png"))
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder) / "figure.svg")
        svg = (Path(folder) / "figure.svg").read_text(encoding="utf-8")
    inside = svg[svg.index("<svg") :]
    return f'<figure role="img" aria-label="{escape(heading)}">{inside}</figure>'


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else "<p>-</p>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _stages(found: Advice) -> str:
    rows = [
        [stage.name, f"{stage.seconds:.1f}", "-" if stage.expected is None else f"{stage.expected:.1f}"]
        for stage in found.stages
    ]
    total = f"<p>{found.seconds:.0f} s of a budget of {found.budget:.0f} s, this report to come.</p>"
    return total + _table(["stage", "seconds", "expected"], rows)


def _ledger(runs: Sequence[Run]) -> str:
    header = ["run", "strategy", "samples", "per class", "seed", "setting", "accuracy", "seconds"]
    rows = [
        [
            run.key[:8],
            run.strategy,
            str(len(run.train) + len(run.validation)),
            str(run.shots or "all"),
            str(run.seed),
            run.setting,
            f"{run.test_accuracy:.3f}",
            f"{run.footprint['wall_seconds']['value']:.1f}",
        ]
        for run in runs
    ]
    return _table(header, rows)
