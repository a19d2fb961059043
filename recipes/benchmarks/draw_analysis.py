"""What fine-tuning changes, how alike two networks see, what units see: the pictures of docs/analysis.md.

HF_TL_REAL_DATA=... python recipes/benchmarks/draw_analysis.py [--plots docs/images] [--photos runs/analysis]

MobileNetV2 (ImageNet) is trained for two epochs on flowers12 at 96 px, all weights, a new head. Sheets that show
photos go elsewhere: they are not ours to distribute.
"""

import argparse
import copy
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from machine import keep, real_data
from real_embeddings import BIRDS, IMAGENET, raw_embeddings

from hf_tl import FullNetworkEmbedding, Network, Samples, compare_layers, load_network, load_task, measure_change
from hf_tl.analysis import draw_maximised_units, draw_top_images
from hf_tl.analysis.twins import twin_groups


NAME, SIDE, EPOCHS, RATE, BATCH = "flowers12", 96, 2, 1e-3, 32
READ = 6  # one sample in so many is read before and after
UNITS = (0, 1, 2, 3)
TITLE = f"MobileNetV2 (ImageNet), {EPOCHS} epochs on {NAME}"


def trained(network: Network, samples: Samples) -> Network:
    """All weights trained."""
    model = copy.deepcopy(network.model).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    parts = torch.arange(len(samples)).split(BATCH)
    pixels = torch.cat([network.prepare([samples[int(i)] for i in part]) for part in parts])
    labels = torch.tensor(samples.labels)
    torch.manual_seed(0)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(samples)).split(BATCH):
            loss = torch.nn.functional.cross_entropy(model(pixels[part]).logits, labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return replace(network, model=model.eval())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plots", type=Path, default=Path("docs/images"))
    parser.add_argument("--photos", type=Path, default=Path("runs/analysis"))
    options = parser.parse_args()
    options.photos.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    samples = load_task(str(real_data() / "sets" / NAME), modality="image").train
    reader = FullNetworkEmbedding(recipe="raw", taps="auto")
    networks = [reader.activations(raw_embeddings(NAME, weights=weights)[0]) for weights in (IMAGENET, BIRDS)]
    alike = compare_layers(*(one[::READ] for one in networks))
    alike.plot(
        options.plots / "cka.png",
        title=f"{NAME}: MobileNetV2 of ImageNet and of iNaturalist's birds",
        names=("ImageNet", "birds"),
    )
    draw_top_images(
        options.photos / "top-images.png",
        networks[0],
        samples,
        layer="conv_head",
        groups=twin_groups(samples, modality="image"),
        title=f"{NAME}, MobileNetV2 (ImageNet)",
    )
    before = load_network(str(real_data() / "weights" / IMAGENET), image_size=SIDE, classes=samples.class_names)
    torch.manual_seed(0)
    after = trained(before, samples)
    some = np.arange(0, len(samples), READ)
    few = replace(samples, dataset=samples.dataset.select(some), labels=samples.labels[some])
    read = [
        FullNetworkEmbedding(network, recipe="raw", taps="auto", batch_size=32, progress=False).activations(few)
        for network in (before, after)
    ]
    change = measure_change(before.model, after.model, features=read)
    print(change, flush=True)
    change.plot(options.plots / "change.png", title=TITLE)
    models = {"before": before.model, "after": after.model}
    layer = next(name for name, _ in before.model.named_modules() if name.endswith("blocks.3"))
    draw_maximised_units(options.plots / "units.png", models, layer, UNITS, side=112, n_steps=64, title=TITLE)
    keep("draw_analysis", {"change": str(change), "cpu_seconds": round(time.process_time() - start)})


if __name__ == "__main__":
    main()
