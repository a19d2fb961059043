"""FootprintCallback counts what a Trainer does: as it is, with evaluations, resumed, and after an error."""

import copy
import gc
import inspect
import threading

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_tl import Footprint, FootprintCallback
from hf_tl.analysis import footprint_callback
from hf_tl.analysis.flops import FlopCounter


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


class Refusing(torch.autograd.Function):
    """Passes values on, and calls something for gradients."""

    @staticmethod
    def forward(ctx, values, call):
        ctx.call = call
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.call()


class Failing(Net):
    """Fails at one place of a step."""

    def __init__(self, where, error):
        super().__init__()
        self.where, self.error = where, error

    def fail(self, *args, **kwargs):
        raise self.error("out of memory")

    def forward(self, x, labels=None):
        if self.where == "forward":
            nn.functional.linear(x, torch.ones(8, 8))
            self.fail()
        logits = self.net(x)
        if self.where == "within a gradient":
            logits = Refusing.apply(logits, self.fail)
        if self.where == "between two gradients":
            logits.register_hook(self.fail)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


PLACES = ("forward", "loss", "within a gradient", "between two gradients", "optimizer", "samples")
CASES = [("forward", RuntimeError), *((place, KeyboardInterrupt) for place in PLACES)]


def fail(folder, callback, where, error):
    """A training that an error ends; the Trainer."""
    net = Failing(where, error)
    one = trainer(folder, callback, net=net)
    if where == "loss":
        one.compute_loss_func = net.fail
    if where == "optimizer":
        one.create_optimizer()
        one.optimizer.register_step_pre_hook(net.fail)
    if where == "samples":
        one.data_collator = net.fail
    with pytest.raises(error):
        one.train()
    assert not _get_current_dispatch_mode_stack()
    return one


@pytest.mark.parametrize(("where", "error"), CASES)
def test_after_an_error_nothing_is_counted_and_the_next_training_is(tmp_path, where, error):
    callback = FootprintCallback()
    failed = fail(tmp_path, callback, where, error)
    with FlopCounter() as counter:
        failed.model.net(torch.zeros(1, 8))
    assert counter.total == FORWARD
    trainer(tmp_path, callback).train()
    assert callback.footprint.samples == 40
    assert callback.footprint.flops.value == pytest.approx(40 * STEP)
    assert not _get_current_dispatch_mode_stack()


def test_a_failed_pass_of_evaluation_is_not_counted(tmp_path):
    callback = FootprintCallback()
    one = trainer(tmp_path, callback, eval_strategy="epoch", per_device_eval_batch_size=6)
    fails = iter([True, False])

    class Evaluating(TrainerCallback):
        def on_epoch_begin(self, args, state, control, model, **kwargs):
            model.eval()
            if next(fails):
                with pytest.raises(TypeError):
                    model(torch.zeros(6, 8), labels="none")  # behind the products
            model.train()

    one.add_callback(Evaluating())
    one.train()
    assert callback.footprint.samples == 40 + 12 + 6
    assert callback.footprint.flops.value == pytest.approx(40 * STEP + 12 * FORWARD)
    assert callback.footprint.flops.source == "counted in 5 of 12 steps"


def test_the_measurement_ends_with_the_trainer(tmp_path):
    threads = threading.active_count()
    failed = fail(tmp_path, FootprintCallback(), "forward", RuntimeError)
    del failed
    gc.collect()
    assert threading.active_count() == threads


def test_the_network_is_as_before(tmp_path):
    net = Net()
    one = trainer(tmp_path, FootprintCallback(), net=net)
    one.train()
    assert "forward" not in vars(net)
    assert not net._forward_pre_hooks
    one.callback_handler.on_train_begin(one.args, one.state, one.control)
    assert inspect.signature(net.forward) == inspect.signature(Net().forward)
    copied = copy.deepcopy(net)
    with torch.no_grad():
        copied.net[0].weight.zero_()
    batch = torch.ones(1, 8), torch.tensor([0])
    assert not torch.equal(copied(*batch)["logits"], net(*batch)["logits"])


def test_operations_in_threads_are_unknown(tmp_path):
    passes = footprint_callback._Passes(Net(), count=False)  # as with torch.nn.DataParallel
    passes.begin_step()
    assert passes.amount() is None


def test_the_training_is_the_same(tmp_path):
    runs = []
    for callback in (FootprintCallback(), None):
        one = trainer(tmp_path, callback or FootprintCallback())
        if callback is None:
            one.remove_callback(FootprintCallback)
        one.train()
        runs.append(one.model.state_dict())
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
