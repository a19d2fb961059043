"""hf_tl's LoRA against PEFT's: training steps, what is kept for the backward pass, and management, in turns.

python recipes/benchmarks/bench_lora.py [--repeats 25] [--threads 2] [--part steps|memory|manage] [--case NAME]

Networks have the shapes of small pre-trained ones and random weights, which cost the same. A ratio is ours over
PEFT's in the same turn, so below 1 is better; of management it is PEFT's over ours, so above 1 is better.
"""

import argparse
import copy
import gc
import json
import tempfile
import time
import warnings
from collections.abc import Callable

import peft
import torch
from machine import RESULTS, keep, spread
from torch import nn

from hf_tl import LoraConfig, add_lora, delete_adapter
from hf_tl.lora.adapted import adapter_state_dict
from hf_tl.table import format_table


DENSE = ["query", "key", "value", "dense"]
VIT_DENSE = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
SIZES = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert_like() -> tuple[nn.Module, dict]:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=1000, **SIZES, **STILL))
    return model, {"input_ids": torch.randint(0, 1000, (16, 128)), "labels": torch.zeros(16, dtype=torch.long)}


def vit_like() -> tuple[nn.Module, dict]:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(image_size=176, **SIZES, **STILL))
    return model, {"pixel_values": torch.randn(16, 3, 176, 176), "labels": torch.zeros(16, dtype=torch.long)}


def adapted(model: nn.Module, **config) -> dict[str, nn.Module]:
    """The same network with the same adapter, by PEFT and by hf_tl."""
    config = {"r": 8, "lora_alpha": 16, "modules_to_save": ["classifier"], **config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**config))
    return {"peft": theirs.train(), "hf_tl": add_lora(copy.deepcopy(model), LoraConfig(**config)).train()}


CASES = {
    "BERT-like, all linear": (bert_like, {"target_modules": DENSE, "exclude_modules": ["pooler.dense"]}),
    "ViT-like, all linear": (vit_like, {"target_modules": VIT_DENSE}),
    "BERT-like, q and v": (bert_like, {"target_modules": ["query", "value"]}),
    "BERT-like, all linear, dropout 0.1": (
        bert_like,
        {"target_modules": DENSE, "exclude_modules": ["pooler.dense"], "lora_dropout": 0.1},
    ),
    "BERT-like, all linear, DoRA": (
        bert_like,
        {"target_modules": DENSE, "exclude_modules": ["pooler.dense"], "use_dora": True},
    ),
}


def time_steps(repeats: int, cases: list[str]) -> dict:
    """Seconds of forward, backward and AdamW, float32 on the CPU."""
    results = {}
    for name in cases:
        network, config = CASES[name]
        model, batch = network()
        models = adapted(model, **config)
        optimizers = {
            side: torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-4)
            for side, m in models.items()
        }

        def step(side: str, models=models, optimizers=optimizers, batch=batch) -> None:
            models[side](**batch).loss.backward()
            optimizers[side].step()
            optimizers[side].zero_grad()

        results[name] = in_turns({side: lambda side=side: step(side) for side in models}, repeats)
    return results


def in_turns(
    tasks: dict[str, Callable], repeats: int, *, given: dict[str, Callable] | None = None, faster: bool = False
) -> dict:
    """Seconds of "peft" and "hf_tl", A B B A ..., after one turn to warm up, and their ratio turn by turn.

    What a task is given is made just before it and freed after it, outside of its time: a network takes longer to
    free than to merge, and one that has lain idle comes back from the memory of the machine page by page.
    """
    seconds = {side: [] for side in tasks}
    for turn in range(repeats + 1):
        for side in list(tasks) if turn % 2 else reversed(tasks):
            arguments = () if given is None else (given[side](),)
            gc.collect()
            gc.disable()  # as timeit does: a collection would fall on either side by chance
            start = time.perf_counter()
            made = tasks[side](*arguments)
            if turn:
                seconds[side].append(time.perf_counter() - start)
            del made, arguments
            gc.enable()
    pairs = list(zip(seconds["hf_tl"], seconds["peft"], strict=True))
    ratio = [theirs / ours if faster else ours / theirs for ours, theirs in pairs]
    fine = {side: spread([1e3 * s for s in values]) for side, values in seconds.items()}
    return {"milliseconds": fine, "faster_by" if faster else "ratio": spread(ratio)}


def kept_mib(run: Callable[[], torch.Tensor], model: nn.Module) -> float:
    """MiB of distinct storages that autograd keeps for the backward pass, parameters apart."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor stays alive, so no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(size for size, _ in kept.values()) / 2**20


def weigh_activations() -> dict:
    """MiB kept for the backward pass of one step; under autocast the narrow copies of the weights are among them."""
    results = {}
    for name, (network, config) in CASES.items():
        for kind in ("float32", "bfloat16 base", "bfloat16 autocast"):
            if config.get("use_dora") and kind != "float32":
                continue
            model, batch = network()
            if kind == "bfloat16 base":
                model = model.bfloat16()
                batch = {k: v.bfloat16() if v.is_floating_point() else v for k, v in batch.items()}
            sides = {}
            for side, m in adapted(model, **config).items():
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled="autocast" in kind):
                    sides[side] = round(kept_mib(lambda m=m, batch=batch: m(**batch).loss, m), 1)
            results[f"{name}, {kind}"] = {"mebibytes": sides, "ratio": round(sides["hf_tl"] / sides["peft"], 3)}
    return results


def time_management(repeats: int) -> dict:
    """Injection, loading, reading and merging on a network of BERT-base's shape: 73 linear layers."""
    from transformers import BertConfig, BertForSequenceClassification

    from hf_tl import load_adapter

    model = BertForSequenceClassification(BertConfig())
    config = {"r": 8, "lora_alpha": 16, "target_modules": DENSE, "modules_to_save": ["classifier"]}
    inject = {
        "peft": lambda fresh: peft.get_peft_model(fresh, peft.LoraConfig(**config)),
        "hf_tl": lambda fresh: add_lora(fresh, LoraConfig(**config)),
    }
    fresh = dict.fromkeys(inject, lambda: copy.deepcopy(model))
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        ready = {side: inject[side](copy.deepcopy(model)) for side in inject}
        ready["peft"].save_pretrained(folder)
        load = {
            "peft": lambda fresh: peft.PeftModel.from_pretrained(fresh, folder),
            "hf_tl": lambda fresh: load_adapter(fresh, folder),
        }
        read = {
            "peft": lambda: peft.get_peft_model_state_dict(ready["peft"]),
            "hf_tl": lambda: adapter_state_dict(ready["hf_tl"]),
        }
        merge = {"peft": lambda made: made.merge_and_unload(), "hf_tl": lambda made: delete_adapter(made, merge=True)}
        made = {side: lambda side=side: inject[side](copy.deepcopy(model)) for side in inject}
        return {
            "inject": in_turns(inject, repeats, given=fresh, faster=True),
            "load": in_turns(load, repeats, given=fresh, faster=True),
            "state_dict": in_turns(read, repeats, faster=True),
            "merge": in_turns(merge, repeats, given=made, faster=True),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", action="append", choices=("steps", "memory", "manage"))
    parser.add_argument("--case", action="append", choices=tuple(CASES), help="of the steps; the others are kept")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    parts = options.part or ["steps", "memory", "manage"]
    runs = {
        "steps": lambda: time_steps(options.repeats, options.case or list(CASES)),
        "memory": weigh_activations,
        "manage": lambda: time_management(options.repeats),
    }
    path = RESULTS / "lora.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {}
    for part in parts:
        kept = results.get(part, {}) if part == "steps" and options.case else {}
        results[part] = {**kept, "threads": options.threads, **runs[part]()}
        keep("lora", {"results": results})
        print(f"\n{part}\n{format_table(*_table(results[part]))}\n", flush=True)


def _table(results: dict) -> tuple[list[str], list[list]]:
    rows = []
    for name, result in results.items():
        if name == "threads":
            continue
        measure = next(key for key in ("milliseconds", "mebibytes") if key in result)
        values = result[measure]
        sides = [v["median"] if isinstance(v, dict) else v for v in (values["peft"], values["hf_tl"])]
        ratio = result.get("ratio", result.get("faster_by"))
        middle = ratio["median"] if isinstance(ratio, dict) else ratio
        bounds = f"{ratio['min']} - {ratio['max']}" if isinstance(ratio, dict) else ""
        rows.append([name, *sides, middle, bounds])
    unit = "MiB" if "mebibytes" in result else "ms"
    kind = "ours / PEFT" if "ratio" in result else "PEFT / ours"
    return [f"median {unit}", "PEFT", "hf_tl", kind, "range"], rows


if __name__ == "__main__":
    main()
