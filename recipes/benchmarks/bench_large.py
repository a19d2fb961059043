"""A Llama-shaped network of a billion parameters on a processor: an adapter put on, one step, saved; beside PEFT.

python recipes/benchmarks/bench_large.py [--layers 20] [--tokens 512] [--repeats 3] [--threads 1]

Weights are random, in bfloat16, which costs what trained ones cost. Each run is a process of its own, so that its peak
is its own, and the two libraries take turns. Activations are checkpointed; the step is one of AdamW on all linear
layers. Seconds are those of the processor, on one thread, which other work beside it hardly changes.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from machine import keep

from hf_tl.table import format_table


WIDE = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 8}
ADAPTER = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
LIBRARIES = ("peft", "hf_tl")


def network(layers: int) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlamaForCausalLM(LlamaConfig(vocab_size=32000, num_hidden_layers=layers, pad_token_id=0, **WIDE))
    finally:
        torch.set_default_dtype(torch.float32)
    return model.train()


def peak() -> float:
    """GB of resident memory, the most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(library: str, *, layers: int, tokens: int) -> dict[str, float]:
    """Seconds and gigabytes of one library."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    import peft

    from hf_tl import LoraConfig, add_lora, save_adapter

    model = network(layers)
    found = {"parameters": sum(p.numel() for p in model.parameters()), "GB of the network": peak()}
    start = time.process_time()
    if library == "peft":
        model = peft.get_peft_model(model, peft.LoraConfig(**ADAPTER, task_type="CAUSAL_LM"))
    else:
        model = add_lora(model, LoraConfig(**ADAPTER, task_type="CAUSAL_LM"))
    found["s to add"] = time.process_time() - start
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(1, 32000, (1, tokens), generator=torch.Generator().manual_seed(0))
    clock, start = time.perf_counter(), time.process_time()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    found |= {
        "s a step": time.process_time() - start,
        "by the clock": time.perf_counter() - clock,
        "loss": loss.item(),
    }
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        if library == "peft":
            model.save_pretrained(folder)
        else:
            save_adapter(model, folder)
    return found | {"s to save": time.process_time() - start, "GB at most": peak()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=20, help="20 make a billion parameters")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--library", choices=LIBRARIES, help="one run, in this process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.library:
        print(json.dumps(measure(options.library, layers=options.layers, tokens=options.tokens)))
        return
    runs: dict[str, list[dict[str, float]]] = {library: [] for library in LIBRARIES}
    for _ in range(options.repeats):
        for library in LIBRARIES:
            sizes = [f"--layers={options.layers}", f"--tokens={options.tokens}", f"--threads={options.threads}"]
            command = [sys.executable, str(Path(__file__)), *sizes, f"--library={library}"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs[library].append(json.loads(done.stdout.splitlines()[-1]))
            print(library, runs[library][-1], flush=True)
    figures = list(runs[LIBRARIES[0]][0])
    rows = [[n, *(statistics.median(run[n] for run in runs[library]) for library in LIBRARIES)] for n in figures]
    print(format_table(["", *LIBRARIES], rows))
    keep("large", {"options": vars(options), "runs": runs})


if __name__ == "__main__":
    main()
