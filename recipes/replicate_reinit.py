"""Fresh top layers help where samples are few (Zhang et al., ICLR 2021, figure 5 and table 2).

    python recipes/replicate_reinit.py [--seeds 24]

A small transformer learns to fill in masked patches of unlabelled digits, as BERT learns to fill in words. Then it is
fine-tuned on few labelled ones, with the head and the last 0, 1, 2, ... blocks started anew: one line for Trainer.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from digits import accuracy, load, split
from replication import COLOURS, axes, keep, mean, options, said, sure
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    logging,
)

from hf_tl import PolicyCallback


NAME = "replicate_reinit"
N_BLOCKS = 4
SIZES = {"hidden_size": 48, "num_hidden_layers": N_BLOCKS, "num_attention_heads": 4, "intermediate_size": 96}
PATCHES = 16  # of 2 x 2 pixels


def pretrain(folder: Path, *, steps: int) -> None:
    """Leaves a network that fills in masked patches in the folder."""
    images, _ = load()
    torch.manual_seed(0)
    config = ViTConfig(image_size=8, patch_size=2, num_channels=1, encoder_stride=2, num_labels=10, **SIZES)
    model = ViTForMaskedImageModeling(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        batch = images[torch.randint(len(images), (64,))]
        masked = torch.rand(len(batch), PATCHES) < 0.5
        filled = model(batch, bool_masked_pos=masked).reconstruction
        hidden = masked.view(-1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
        ((filled - batch)[hidden] ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.save_pretrained(folder)


class Logits(nn.Module):
    """What of the outputs `accuracy` looks at."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def fine_tune(folder: Path, *, fresh: int, seed: int, rows: int, steps: int) -> float:
    """Accuracy on all other digits after fine-tuning on `rows` of each class with `fresh` blocks started anew."""
    images, labels = load()
    train, test = split(labels, rows, seed=seed)
    data = [{"pixel_values": images[row], "labels": labels[row]} for row in train]
    model = ViTForImageClassification.from_pretrained(folder)
    args = TrainingArguments(
        str(folder / "out"),
        max_steps=steps,
        per_device_train_batch_size=20,
        learning_rate=2e-3,
        warmup_steps=steps // 10,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=True,
        seed=seed,
    )
    policy = f"reinit: -{fresh}.., norm, head" if fresh else "reinit: head"
    trainer = Trainer(model, args, train_dataset=data, callbacks=[PolicyCallback(policy, seed=seed)])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return accuracy(Logits(model), images[test], labels[test])


def main() -> None:
    chosen = options(__doc__, seeds=24)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    lengths, rows, source_steps = {"short": 40, "long": 120}, 10, 1000
    if chosen.quick:
        lengths, rows, source_steps = {"short": 1, "long": 2}, 2, 2
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        pretrain(Path(folder), steps=source_steps)
        for name, steps in lengths.items():
            runs = [
                [fine_tune(Path(folder), fresh=k, seed=seed, rows=rows, steps=steps) for k in range(N_BLOCKS + 1)]
                for seed in range(chosen.seeds)
            ]
            found[name] = np.array(runs)  # (seeds, fresh blocks)

    sentences = []
    for name, values in found.items():
        best = 1 + int(values[:, 1:].mean(0).argmax())
        gain = values[:, best] - values[:, 0]
        verdict = {1: "helps, as in the paper", 0: "makes no clear difference", -1: "harms, and in the paper it helps"}
        sentences.append(
            f"In {name} fine-tuning, a fresh top {verdict[sure(gain)]}: {said(gain)} with the last {best} of "
            f"{N_BLOCKS} blocks anew; accuracies spread by {100 * values[:, best].std(ddof=1):.1f} points over seeds, "
            f"{100 * values[:, 0].std(ddof=1):.1f} with none."
        )
        everything = values[:, -1] - values[:, best]
        sentences.append(f"All {N_BLOCKS} blocks anew instead: {said(everything)}.")
    best = 1 + int(found["short"][:, 1:].mean(0).argmax())
    shrinks = (found["short"][:, best] - found["short"][:, 0]) - (found["long"][:, best] - found["long"][:, 0])
    verdict = {1: "shrinks, as in the paper", 0: "does not clearly change", -1: "grows, and in the paper it shrinks"}
    sentences.append(f"With more steps the gain {verdict[sure(shrinks)]}: by {said(shrinks)}.")
    figure, drawn = axes(
        title="Fine-tuning on few digits with fresh top blocks", x="blocks started anew, from the top", y="accuracy, %"
    )
    for colour, (name, values) in zip(COLOURS, found.items(), strict=False):
        drawn.plot(range(N_BLOCKS + 1), 100 * values.T, color=colour, alpha=0.15, linewidth=1)
        points = [mean(column) for column in values.T]
        drawn.errorbar(
            range(N_BLOCKS + 1),
            [100 * point["mean"] for point in points],
            [100 * point["half_width"] for point in points],
            color=colour,
            label=f"{name}, {lengths[name]} steps",
            marker="o",
            capsize=2,
        )
    drawn.set_xticks(range(N_BLOCKS + 1))
    drawn.legend(frameon=False, fontsize=8)
    results = {
        name: {f"{k} fresh blocks": mean(column) for k, column in enumerate(values.T)}
        for name, values in found.items()
    }
    keep(NAME, chosen, figure=figure, results=results, sentences=sentences)


if __name__ == "__main__":
    main()
