"""All 52 layers of MobileNetV2 probed, and learning curves: seconds, figures, and the plots of docs/probes.md.

HF_TL_REAL_DATA=path/to/data python recipes/benchmarks/bench_probes.py [--plots docs/images] [--draw curves]

With --draw, layers or curves of flowers12 and dtd10 are drawn again, and no figure is kept.
"""

import argparse
import time
from pathlib import Path

from machine import keep
from real_embeddings import SETS, features

from hf_tl import layer_probes, learning_curve
from hf_tl.probes.layer_probes import LayerProbes


TITLES = {"flowers12": "flowers12", "dtd10": "dtd10 (textures)", "fashion900": "fashion900"}
CURVES = ("flowers12", "dtd10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plots", type=Path, default=Path("docs/images"))
    parser.add_argument("--draw", choices=("layers", "curves"))
    options = parser.parse_args()
    plots, results = options.plots, {}
    plots.mkdir(parents=True, exist_ok=True)
    if options.draw:
        for name in CURVES:
            if options.draw == "curves":
                curve(name, plots)
            else:
                untrained = features(name, trained=False)
                draw_layers(layer_probes(*features(name), untrained=untrained, progress=False), name, plots)
        return
    for name in SETS:
        train, test = features(name)
        start = time.perf_counter()
        layer_probes(train, test, progress=False)
        seconds = time.perf_counter() - start
        probes = layer_probes(train, test, untrained=features(name, trained=False), progress=False)
        print(f"{name}: {len(probes.single)} layers and all ranges, {len(train)} samples, {seconds:.1f} s\n{probes}\n")
        gains = probes.gains()
        results[name] = {
            "seconds": round(seconds, 1),
            "samples": len(train),
            "all_layers": [round(probes.whole.score, 4), *(round(v, 4) for v in probes.whole.interval)],
            "best_layer": [probes.best_layer.name, round(probes.best_layer.score, 4)],
            "best_range": [probes.best_range.name, round(probes.best_range.score, 4)],
            "smallest_gain_over_a_single_layer": [round(value, 4) for value in min(gains)],
            "single_layers_clearly_beaten": sum(low > 0 for _, low, _ in gains),
            "random_weights": round(probes.untrained.whole.score, 4),
        }
        if name in CURVES:
            draw_layers(probes, name, plots)
            results[name]["curve"] = curve(name, plots)
    keep("probes", {"results": results})


def draw_layers(probes: LayerProbes, name: str, plots: Path) -> None:
    probes.plot(plots / f"layers-{name}.png", title=f"MobileNetV2 (ImageNet) on {TITLES[name]}")


def curve(name: str, plots: Path) -> dict:
    start = time.perf_counter()
    whole = learning_curve(*features(name), progress=False)
    last = learning_curve(*features(name, recipe="l2", taps="last"), method="last layer", progress=False)
    both = whole.beside(last)
    print(f"{name}: learning curves, {time.perf_counter() - start:.1f} s")
    print(f"{both.table()}\n{both.compare('full network', 'last layer')}\n{both.outlook()}\n")
    both.plot(
        plots / f"curve-{name}.png",
        title=f"MobileNetV2 (ImageNet) on {TITLES[name]}, linear SVM",
        note="C chosen on the samples",
        extrapolate=True,
    )
    return {method: [round(float(draws.mean()), 4) for draws in values] for method, values in both.accuracy.items()}


if __name__ == "__main__":
    main()
