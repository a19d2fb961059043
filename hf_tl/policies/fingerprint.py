"""Whether a checkpoint is resumed under the policy that it was trained under."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from hf_tl.errors import InputError, in_one_line
from hf_tl.layers import Layers
from hf_tl.policies.grammar import Clause, parse_policy
from hf_tl.policies.phases import At


KEY = "hf_tl.policy"  # its place in a checkpoint's trainer_state.json; no class is called so, and Trainer leaves it


def fingerprint(
    layers: Layers, *, text: str, phases: Sequence[At], seed: int, l2_sp: float, relative_rates: bool
) -> list[str]:
    """Everything that decides on what a policy does to a network, one statement after the other.

    Args:
        layers: of the network.
        text: the clauses that hold in every phase.
        phases: written out for the network.
        seed: of reinitialised layers; it matters only if there are some.
        l2_sp: as in `Policy`.
        relative_rates: as in `Policy`.
    """
    clauses = parse_policy(text)
    said = [_statement(clause) for clause in clauses]
    for phase in phases:
        said += [f"from {phase.when}: {_statement(clause)}" for clause in parse_policy(phase.text)]
        said += [f"from {phase.when}"]
    if any(clause.verb == "reinit" for clause in clauses):
        said.append(f"seed={seed}")
    said += [f"l2_sp={l2_sp!r}"] * bool(l2_sp)
    said += ["relative_rates=True"] * relative_rates
    return said + [f"layer {layer.name!r}" for layer in layers]


def read_fingerprint(folder: str | Path) -> object:
    """What a checkpoint of Trainer's holds for `check_fingerprint`; None if it holds nothing, or is none.

    Raises:
        InputError: its trainer_state.json cannot be read.
    """
    path = Path(folder) / "trainer_state.json"
    if not path.is_file():
        return None
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {in_one_line(error)}; resume from another checkpoint") from error
    held = state.get("stateful_callbacks") if isinstance(state, dict) else None
    return held.get(KEY) if isinstance(held, dict) else None


def check_fingerprint(stored: object, own: Sequence[str]) -> None:
    """Compares the policy of a checkpoint with that of the Trainer that resumes it.

    Args:
        stored: what the checkpoint holds, None if a Trainer without a policy wrote it.
        own: from `fingerprint`.

    Raises:
        InputError: they differ; the message quotes where.
    """
    if stored is None:
        return
    if not isinstance(stored, list) or not all(isinstance(line, str) for line in stored):
        raise InputError(f"the checkpoint's policy is damaged: {KEY!r} in its trainer_state.json should be a list")
    for there, here in zip_longest(stored, own, fillvalue="nothing"):
        if there != here:
            raise InputError(
                f"the checkpoint was trained under another policy, with {there!r} where this one has {here!r}; resume "
                f"under the same policy, or load the checkpoint with from_pretrained and train anew"
            )


def _statement(clause: Clause) -> str:
    value = f"{clause.word} {clause.rate!r}".replace("x ", "x") if clause.verb == "lr" else clause.word
    return f"{clause.verb}: {' '.join([value, clause.text[clause.start : clause.stop].strip()]).strip()}"
