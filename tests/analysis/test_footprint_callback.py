"""FootprintCallback counts what a Trainer does: as it is, with evaluations, resumed, and after an error."""

import gc
import threading

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from transformers import Trainer, TrainingArguments

from hf_tl import Footprint, FootprintCallback
from hf_tl.analysis import footprint_callback


class Net(nn.Module):
    """A loss and logits, as Trainer wants them."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


FORWARD = 2 * (8 * 16 + 16 * 2)
STEP = 3 * FORWARD - 2 * 8 * 16  # the input has no gradient


def trainer(folder, callback, *, net=None, **options):
    torch.manual_seed(0)
    data = [{"x": torch.randn(8), "labels": i % 2} for i in range(20)]
    options = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "save_strategy": "no", **options}
    arguments = TrainingArguments(
        str(folder), report_to="none", use_cpu=True, disable_tqdm=True, logging_strategy="no", **options
    )
    return Trainer(net or Net(), arguments, train_dataset=data, eval_dataset=data[:6], callbacks=[callback])


def test_every_step_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(footprint_callback, "FIRST", 1000)
    callback = FootprintCallback(country="ESP")
    trainer(tmp_path, callback).train()
    found = callback.footprint
    assert found.samples == 40
    assert (found.flops.value, found.flops.method) == (40 * STEP, "measured")
    assert found.experiments == 1
    assert found.co2_grams.value > 0
    assert Footprint.load(tmp_path / "footprint.json") == found
    assert not _get_current_dispatch_mode_stack()


def test_some_steps_counted_and_evaluations_too(tmp_path):
    callback = FootprintCallback()
    trainer(tmp_path, callback, eval_strategy="epoch", per_device_eval_batch_size=6).train()
    found = callback.footprint
    assert found.samples == 40 + 12
    assert found.flops.value == pytest.approx(40 * STEP + 12 * FORWARD)
    assert found.flops.method == "estimated"
    assert found.flops.source == "counted in 5 of 12 steps"


def test_accumulated_and_smaller_last_batches(tmp_path):
    callback = FootprintCallback()
    trainer(tmp_path, callback, per_device_train_batch_size=3, gradient_accumulation_steps=2).train()
    assert callback.footprint.samples == 40
    assert callback.footprint.flops.value == pytest.approx(40 * STEP)


def test_resumed_is_straight(tmp_path):
    first = FootprintCallback()
    trainer(tmp_path, first, save_strategy="steps", save_steps=5).train()
    second = FootprintCallback()
    trainer(tmp_path, second).train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert second.footprint.samples == first.footprint.samples
    assert second.footprint.flops.value == pytest.approx(first.footprint.flops.value)
    assert second.footprint.experiments == 1


def test_two_trainings_add_up(tmp_path):
    callback = FootprintCallback()
    for _ in range(2):
        trainer(tmp_path, callback).train()
    assert callback.footprint.samples == 80
    assert callback.footprint.experiments == 2


class Failing(Net):
    """Fails in its forward pass, in its backward pass, or is interrupted by its user."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def forward(self, x, labels=None):
        if self.where == "forward":
            raise RuntimeError("out of memory")
        if self.where == "interrupted":
            raise KeyboardInterrupt
        output = super().forward(x, labels)
        if self.training:
            output["loss"].register_hook(self.fail)
        return output

    def fail(self, gradient):
        raise RuntimeError("out of memory")


def fail(folder, callback, where):
    """A training that an error ends; the Trainer and its network."""
    one = trainer(folder, callback, net=Failing(where))
    with pytest.raises(KeyboardInterrupt if where == "interrupted" else RuntimeError):
        one.train()
    return one


def test_a_failing_forward_pass_ends_the_counting(tmp_path):
    fail(tmp_path, FootprintCallback(), "forward")
    assert not _get_current_dispatch_mode_stack()


@pytest.mark.parametrize("where", ["forward", "backward", "interrupted"])
def test_after_an_error_the_next_training_is_counted_anew(tmp_path, where):
    callback = FootprintCallback()
    fail(tmp_path, callback, where)
    trainer(tmp_path, callback).train()
    assert callback.footprint.samples == 40
    assert callback.footprint.flops.value == pytest.approx(40 * STEP)
    assert not _get_current_dispatch_mode_stack()


def test_after_an_error_the_next_pass_ends_the_counting(tmp_path):
    failed = fail(tmp_path, FootprintCallback(), "backward")
    failed.model.eval()(torch.zeros(1, 8), torch.tensor([0]))
    assert not _get_current_dispatch_mode_stack()


@pytest.mark.parametrize("where", ["backward", "interrupted"])
def test_the_counting_ends_with_the_trainer(tmp_path, where):
    threads = threading.active_count()
    failed = fail(tmp_path, FootprintCallback(), where)
    del failed
    gc.collect()
    assert not _get_current_dispatch_mode_stack()
    assert threading.active_count() == threads


def test_the_training_is_the_same(tmp_path):
    runs = []
    for callback in (FootprintCallback(), None):
        one = trainer(tmp_path, callback or FootprintCallback())
        if callback is None:
            one.remove_callback(FootprintCallback)
        one.train()
        runs.append(one.model.state_dict())
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
