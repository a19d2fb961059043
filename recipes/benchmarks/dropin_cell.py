"""Runs one script as `python SCRIPT ARGUMENTS...` would, and writes down whether the pillar that was added worked.

    python dropin_cell.py FOLDER SCRIPT ARGUMENTS...

The script is not touched: this file watches hf_tl's functions from outside and looks at the network when the script
has ended. FOLDER gets a file for each process, RANK.json.
"""

import hashlib
import json
import runpy
import sys
import traceback
from pathlib import Path

import torch


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
    from hf_tl.embedding.callback import EmbeddingCallback
    from hf_tl.policies.applied import AppliedPolicy

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


def main() -> None:
    folder, script = Path(sys.argv[1]), sys.argv[2]
    seen = watch()
    sys.argv = sys.argv[2:]
    error = None
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as left:
        error = None if left.code in (0, None) else f"exit code {left.code}"
    except BaseException as raised:
        traceback.print_exc()
        error = f"{type(raised).__name__}: {raised}"
    from accelerate import PartialState

    state = PartialState()
    found = {"processes": state.num_processes, "rank": state.process_index, "error": error, **seen.report()}
    (folder / f"{state.process_index}.json").write_text(json.dumps(found))
    sys.exit(0 if error is None else 1)


if __name__ == "__main__":
    main()
