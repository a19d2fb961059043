"""Runs scripts as `python SCRIPT ARGUMENTS...` would, and writes down whether the pillar that was added worked.

    python dropin_cell.py ORDERS.json [RANKS]
    accelerate launch ... dropin_cell.py ORDERS.json

ORDERS.json is [{"folder", "beside", "script", "words", "port"}, ...]: where it runs, where the script was found. Each
script has a process of its own on every rank, forked when everything that takes long is imported, in the folder, which
gets RANK.json and RANK.txt, what it said. The script is not touched: this file watches hf_tl's functions from outside
and looks at the network when the script has ended.
"""

import hashlib
import importlib.util
import json
import os
import runpy
import signal
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

import torch


LIMIT = 600  # seconds of one script
SLOW = (
    "accelerate",
    "datasets",
    "evaluate",
    "timm",
    "sklearn.svm",
    "sklearn.neighbors",
    "hf_tl.probes.embedding_callback",
    "hf_tl.lora.inject",
    "hf_tl.policies.policy_callback",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.vit.modeling_vit",
)


class Watch:
    """What hf_tl was asked to do in this process, and what came of it."""

    def __init__(self):
        self.frozen, self.tuned, self.model, self.measured = {}, {}, None, []

    def keep(self, model: torch.nn.Module) -> None:
        """What the parameters are before the first step."""
        self.model = model
        for name, parameter in model.named_parameters():
            kept = self.tuned if parameter.requires_grad else self.frozen
            kept[name] = parameter.detach().clone()

    def report(self) -> dict:
        """Counts, and the digest by which processes are compared."""
        found = {"measured": self.measured}
        if self.model is not None:
            now = dict(self.model.named_parameters())
            found["frozen"] = len(self.frozen)
            found["frozen that moved"] = [n for n, was in self.frozen.items() if not torch.equal(was, now[n])]
            found["tuned"] = len(self.tuned)
            found["tuned that moved"] = sum(not torch.equal(was, now[n]) for n, was in self.tuned.items())
            digest = hashlib.sha256()
            for name in sorted(now):
                digest.update(now[name].detach().cpu().numpy().tobytes())
            found["digest"] = digest.hexdigest()
        return found


def watch() -> Watch:
    """Puts itself behind the three pillars' functions."""
    import hf_tl
    from hf_tl.policies.applied import AppliedPolicy
    from hf_tl.probes.embedding_callback import EmbeddingCallback

    seen = Watch()
    start, add_lora, measure = AppliedPolicy.start, hf_tl.add_lora, EmbeddingCallback.measure

    def started(applied, *arguments, **options):
        start(applied, *arguments, **options)
        seen.keep(applied.model)

    def added(model, *arguments, **options):
        result = add_lora(model, *arguments, **options)
        seen.keep(result)
        return result

    def measured(callback, model):
        found = measure(callback, model)
        seen.measured.append(found)
        return found

    AppliedPolicy.start, hf_tl.add_lora, EmbeddingCallback.measure = started, added, measured
    return seen


def run(order: dict, rank: int) -> None:
    """Runs a script in this process, which is then of no further use."""
    os.chdir(order["folder"])
    said = os.open(f"{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    if "WORLD_SIZE" in os.environ:  # a meeting place of its own, not that of the launcher
        os.environ |= {"MASTER_PORT": str(order["port"]), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    seen = watch()
    stand_in()
    sys.path.append(order["beside"])
    sys.argv = [order["script"], *order["words"]]
    error = None
    try:
        runpy.run_path(order["script"], run_name="__main__")
    except SystemExit as left:
        error = None if left.code in (0, None) else f"exit code {left.code}"
    except BaseException as raised:
        traceback.print_exc()
        error = f"{type(raised).__name__}: {raised}"
    found = {"processes": count_processes(error), "rank": rank, "error": error, **seen.report()}
    Path(f"{rank}.json").write_text(json.dumps(found))


def stand_in() -> None:
    """Gives scripts of transformers 4 the functions that they import and transformers 5 does not have.

    Recordings are decoded by this project, as torchcodec needs libraries of the system.
    """
    import datasets
    import transformers.utils

    from hf_tl.inputs import read_recording

    for name, value in (("send_example_telemetry", None), ("is_offline_mode", True)):
        if name not in dir(transformers.utils):
            setattr(transformers.utils, name, lambda *arguments, value=value: value)

    def decode(audio, value, token_per_repo_id=None):
        return {"array": read_recording(value, rate=audio.sampling_rate), "sampling_rate": audio.sampling_rate}

    def encode(audio, value):
        return value if isinstance(value, dict) else {"bytes": None, "path": str(value)}

    if importlib.util.find_spec("torchcodec") is None:
        datasets.Audio.decode_example, datasets.Audio.encode_example = decode, encode


def count_processes(error: str | None) -> int:
    """How many processes the script trained with, as accelerate or, where it was cut short, torch knows."""
    from accelerate import PartialState

    if error is None:
        return PartialState().num_processes
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def main() -> None:
    for name in SLOW:
        import_module(name)
    ranks = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    for order in json.loads(Path(sys.argv[1]).read_text()):
        children = [fork(order, rank, ranks) for rank in range(ranks)]
        start = time.monotonic()
        while children:
            children = [child for child in children if os.waitpid(child, os.WNOHANG)[0] == 0]
            if time.monotonic() - start > LIMIT:
                for child in children:
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.05)


def fork(order: dict, rank: int, ranks: int) -> int:
    """Starts a script in a process of its own, as one of several if not launched as one; returns its number."""
    child = os.fork()
    if child == 0:
        try:
            if ranks > 1:
                own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
                os.environ |= {name: str(value) for name, value in own.items()}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
            run(order, int(os.environ.get("RANK", "0")))
        finally:
            sys.stdout.flush()
            os._exit(0)
    return child


if __name__ == "__main__":
    main()
