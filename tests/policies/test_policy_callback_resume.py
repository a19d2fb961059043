"""A checkpoint is resumed under its own policy, or the difference is quoted."""

import json
import re
import shutil

import pytest
import torch
from training import bert, trainer

from hf_tl import InputError, Policy, PolicyCallback


pytestmark = pytest.mark.filterwarnings("ignore")

PHASES = (("0", "tune: head, 3"), ("3 steps", "tune: all; lr: x0.5"))
TRAINED = Policy("reinit: head; lr: decay 0.5", PHASES, seed=3, l2_sp=0.1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    trainer(bert(), folder, [PolicyCallback(TRAINED)], save_strategy="steps", save_steps=2, max_steps=2).train()
    return folder / "checkpoint-2"


def resume(policy, checkpoint, folder, **options):
    training = trainer(bert(), folder, [PolicyCallback(policy)] if policy else [], max_steps=4, **options)
    training.train(resume_from_checkpoint=str(checkpoint))
    return training


@pytest.mark.slow
def test_the_same_policy_written_otherwise_is_the_same(checkpoint, tmp_path):
    spaced = Policy(" reinit:head ;lr:  decay 0.50; ", PHASES, seed=3, l2_sp=0.1)
    assert resume(spaced, checkpoint, tmp_path).state.global_step == 4


LATER = (("0", "tune: head, 3"), ("4 steps", "tune: all; lr: x0.5"))
OTHER = (("0", "tune: head, 3"), ("3 steps", "tune: all; lr: x0.25"))
CASES = {
    "another rate": (
        Policy("reinit: head; lr: decay 0.7", PHASES, seed=3, l2_sp=0.1),
        "with 'lr: decay 0.5' where this one has 'lr: decay 0.7'",
    ),
    "a clause less": (
        Policy("reinit: head", PHASES, seed=3, l2_sp=0.1),
        "with 'lr: decay 0.5' where .* 'from 0: tune:",
    ),
    "another seed": (Policy("reinit: head; lr: decay 0.5", PHASES, seed=4, l2_sp=0.1), "'seed=3' .* 'seed=4'"),
    "another strength": (Policy("reinit: head; lr: decay 0.5", PHASES, seed=3), "with 'l2_sp=0.1' where"),
    "another time": (
        Policy("reinit: head; lr: decay 0.5", LATER, seed=3, l2_sp=0.1),
        "'from 3 steps: tune: all' where this one has 'from 4 steps: tune: all'",
    ),
    "another phase": (
        Policy("reinit: head; lr: decay 0.5", OTHER, seed=3, l2_sp=0.1),
        r"'from 3 steps: lr: x0\.5' where this one has 'from 3 steps: lr: x0\.25'",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_another_policy_is_refused_with_what_differs(case, checkpoint, tmp_path):
    policy, message = CASES[case]
    with pytest.raises(InputError, match=f"trained under another policy, .*{message}"):
        resume(policy, checkpoint, tmp_path)


def test_other_frozen_layers_are_refused_before_torch_sees_them(tmp_path):
    """The optimizer is loaded before any callback hears of a resume, unless the arguments tell of it."""
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    trainer(bert(), tmp_path, [PolicyCallback("freeze: ..50%")], **options).train()
    saved, model = str(tmp_path / "checkpoint-1"), bert()
    with pytest.raises(InputError, match=r"with 'freeze: \.\.50%' where this one has 'freeze: \.\.75%'; resume under"):
        trainer(model, tmp_path, [PolicyCallback("freeze: ..75%; reinit: head")], resume_from_checkpoint=saved)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), bert().parameters(), strict=True))
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        resume("freeze: ..75%", saved, tmp_path)


@pytest.mark.slow
def test_checkpoints_of_a_plain_trainer_are_taken_and_given(checkpoint, tmp_path):
    plain = trainer(bert(), tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    plain.train()
    saved = tmp_path / "checkpoint-2"
    options = {"save_strategy": "steps", "save_steps": 4}
    ours = resume("lr: decay 0.5", saved, tmp_path / "ours", **options)
    assert ours.state.global_step == 4
    held = json.loads((tmp_path / "ours/checkpoint-4/trainer_state.json").read_text())["stateful_callbacks"]
    assert held["hf_tl.policy"][0] == "lr: decay 0.5"
    restoring = {"restore_callback_states_from_checkpoint": True}
    assert resume(None, checkpoint, tmp_path / "plain", **options, **restoring).state.global_step == 4


@pytest.mark.slow
def test_a_damaged_state_is_said(checkpoint, tmp_path):
    twin = shutil.copytree(checkpoint, tmp_path / "twin")
    path = twin / "trainer_state.json"
    state = json.loads(path.read_text())
    for wrong in ({"a": 1}, [1, 2], "freeze: all"):
        state["stateful_callbacks"]["hf_tl.policy"] = wrong
        path.write_text(json.dumps(state))
        with pytest.raises(InputError, match="the checkpoint's policy is damaged"):
            resume(TRAINED, twin, tmp_path / "out")
    path.write_text("{")
    with pytest.raises(InputError, match=f"{re.escape(str(path))} cannot be read: JSONDecodeError"):
        trainer(bert(), tmp_path, [PolicyCallback(TRAINED)], resume_from_checkpoint=str(twin))
