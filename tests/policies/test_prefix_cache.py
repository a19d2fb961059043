"""The prefix cache: the same losses, less work, and a plain word where it cannot help."""

import errno
import io
import logging
import tempfile

import pytest
import timm
import torch
from lanes import lanes
from torch import nn
from training import LabelledSamples, bert, images, largest_difference, network, state, texts, trainer
from transformers import TrainerCallback
from zoo import ZOO

from hf_tl import Policy, PolicyCallback, PrefixCache, list_layers
from hf_tl.example import dummy_batch
from hf_tl.policies.cut import find_cuts, holds


pytestmark = pytest.mark.filterwarnings("ignore")


TINY = [specimen for specimen in ZOO if len(specimen.blocks) == 1 and specimen.family == "transformers"]


class Losses(TrainerCallback):
    """What each step of training lost, and how many rows the first block computed."""

    def __init__(self, block=None):
        self.losses, self.computed = [], 0
        if block is not None:
            block.register_forward_hook(self.count)

    def count(self, module, args, output):
        self.computed += module.training is False and "forward" not in module.__dict__

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            self.losses.append(logs["loss"])


def train(model, folder, policy, cache, data=None, **options):
    losses = Losses()
    options = {"num_train_epochs": 2, "logging_strategy": "steps", "logging_steps": 1} | options
    training = trainer(model, folder, [PolicyCallback(policy, cache=cache), losses], data, **options)
    training.train()
    return losses.losses


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bert", "freeze: ..50%"),
        ("bert", "freeze: ..75%; lr: decay 0.5"),
        ("bert", "tune: head"),
        ("ViTForImageClassification", "freeze: ..50%"),
        ("ResNetForImageClassification", "freeze: ..50%"),
        ("MobileNetV2ForImageClassification", "freeze: ..75%"),
    ],
)
def test_losses_are_the_same_with_and_without(name, text, tmp_path):
    found, states, cache = [], [], PrefixCache(folder=tmp_path)
    data = texts(16) if name == "bert" else images(16, side=32)
    for one in (None, cache):
        model = bert(dropout=0.1) if name == "bert" else network(name)
        found.append(train(model, tmp_path, text, one, data))
        states.append(state(model))
    assert cache.off == ""
    assert cache.hits == 16
    assert len(found[0]) == 8
    assert found[0] == pytest.approx(found[1], rel=1e-4)  # a sample's sums are rounded by its place in the batch
    assert largest_difference(*states) < 1e-3
    assert not list(tmp_path.glob("hf-tl-prefix-*"))


@pytest.mark.slow
def test_the_prefix_is_not_computed_again(tmp_path):
    model, calls = bert(), []
    attention = model.bert.encoder.layer[0].attention
    attention.register_forward_hook(lambda *_: calls.append(1))
    cache = PrefixCache()
    callback = PolicyCallback("freeze: ..50%", cache=cache)
    training = trainer(model, tmp_path, [callback], num_train_epochs=4)
    calls.clear()
    training.train()
    assert cache.cut.layer.name == "bert.encoder.layer.1"
    assert len(calls) == 8 + 3  # the first epoch, and three passes to see that it holds


@pytest.mark.slow
@pytest.mark.parametrize("dtype", lanes([torch.float16, torch.bfloat16], fast=torch.bfloat16.__eq__))
def test_half_the_size_and_nearly_the_same_losses(dtype, tmp_path):
    plain = train(bert(), tmp_path, "freeze: ..50%", None)
    half = train(bert(), tmp_path, "freeze: ..50%", PrefixCache(dtype=dtype))
    assert plain[:8] == half[:8]
    assert plain != half
    assert max(abs(a - b) for a, b in zip(plain, half, strict=True)) < 0.02


def test_augmentation_switches_it_off_with_a_message(tmp_path, caplog):
    class Noisy(LabelledSamples):
        def __getitem__(self, index):
            row = super().__getitem__(index)
            return row | {self.name: row[self.name] + torch.randn(()) * 0.1}

    data = Noisy("pixel_values", images(side=32).inputs)
    cache = PrefixCache(folder=tmp_path)
    with caplog.at_level(logging.WARNING):
        train(network("ViTForImageClassification"), tmp_path, "freeze: ..50%", cache, data, num_train_epochs=4)
    assert "0 of 64 samples after the first epoch were known" in cache.off
    assert "augmentation" in caplog.text
    assert not list(tmp_path.glob("hf-tl-prefix-*"))


@pytest.mark.slow
def test_a_full_disk_is_seen_before_anything_is_written(tmp_path, caplog):
    cache = PrefixCache(folder=tmp_path, share=1e-12)
    with caplog.at_level(logging.WARNING):
        losses = train(bert(), tmp_path / "out", "freeze: ..50%", cache)
    assert "32 samples behind 'bert.encoder.layer.1' need 0.0 MiB" in cache.off
    assert "dtype=torch.float16" in caplog.text
    assert losses == train(bert(), tmp_path / "out", "freeze: ..50%", None)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["tune: stem", "freeze: ..50%; dropout: on", "freeze: ..50%; norm: train"])
def test_what_is_not_deterministic_is_not_kept(text, tmp_path, caplog):
    cache = PrefixCache()
    train(bert(dropout=0.1), tmp_path, text, cache)
    assert "no frozen, deterministic layer" in cache.off
    assert cache.hits == 0


class Masked(nn.Module):
    """Draws random numbers between frozen layers, in no module, as SpecAugment does."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(4))
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.stem(x)
        if self.training:
            x = x * (torch.rand_like(x) > 0.2)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Careless(Masked):
    """Drops out in a block in evaluation too, as `dropout` does by default."""

    class Block(nn.Linear):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x))

    def __init__(self):
        super().__init__()
        self.blocks[0] = self.Block(8, 8)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Leaves(nn.Linear):
    """Leaves a number in an attribute on its way, which the flow of tensors does not show."""

    def forward(self, x):
        self.left = x[0].mean().item()
        return super().forward(x)


class Secretive(nn.Module):
    """Its head looks up what its first block has left."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.blocks = nn.ModuleList([Leaves(8, 8), *(nn.Linear(8, 8) for _ in range(3))])
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x).relu()
        return self.head(x) + self.blocks[0].left


def test_what_passes_on_behind_the_tensors_back_is_noticed():
    model, inputs = Secretive(), torch.randn(8, 4)
    applied = Policy("freeze: stem, 0..2").apply(model, example=torch.randn(1, 4), blocks=["blocks.*"])
    assert all(layer.split_point for layer in applied.layers[:3])
    plain = [model(inputs[rows]) for rows in (slice(0, 4), slice(4, 8))]
    cache = PrefixCache()
    applied.use_cache(cache, n_samples=8)
    model.train()
    for _ in range(2):
        for rows, expected in zip((slice(0, 4), slice(4, 8)), plain, strict=True):
            assert torch.equal(model(inputs[rows]), expected)
    assert cache.hits == 8
    assert cache.cut.layer.name == "stem"


@pytest.mark.parametrize("kind", [Masked, Careless])
def test_random_numbers_of_the_frozen_part_are_noticed(kind):
    model = kind()
    cache = PrefixCache()
    applied = Policy("freeze: ..2").apply(model, example=torch.randn(1, 4))
    applied.use_cache(cache, n_samples=8)
    inputs = torch.randn(8, 4)
    model.train()
    model(inputs[:4])
    assert cache.cut is None or cache.cut.layer.kind == "stem"
    if cache.cut is None:
        assert "draws random numbers" in cache.off
    plain = kind().train()
    plain.load_state_dict(model.state_dict())
    for seed in (1, 2):
        found = []
        for one in (model, plain):
            torch.manual_seed(seed)
            found.append(one(inputs[:4]))
        assert torch.equal(*found)


def test_every_input_of_the_network_counts():
    model, plain = bert(), bert()
    cache = PrefixCache()
    Policy("freeze: ..50%").apply(model).use_cache(cache, n_samples=8)
    ids = texts(4).inputs
    half = torch.ones_like(ids)
    half[:, 4:] = 0
    for mask, hits in ((torch.ones_like(ids), 0), (half, 0), (half, 4)):
        found = model.train()(input_ids=ids, attention_mask=mask, labels=texts(4).labels)
        assert torch.equal(found.logits, plain.train()(input_ids=ids, attention_mask=mask).logits)
        assert cache.hits == hits
    model(input_ids=ids, attention_mask=half, labels=1 - texts(4).labels)
    assert cache.hits == 8  # labels do not reach the frozen part


def swap(tensor):
    tensor.copy_(tensor.flip(0))


def last_bit(tensor):
    tensor[3, 3] = torch.nextafter(tensor[3, 3], torch.tensor(10.0))


CHANGES = {
    "load_state_dict": lambda model, other: model.load_state_dict(other),
    "assign": lambda model, other: model.load_state_dict(other, assign=True),
    "another .data": lambda model, other: [setattr(p, "data", other[n].clone()) for n, p in model.named_parameters()],
    "into .data": lambda model, other: [p.data.copy_(other[n]) for n, p in model.named_parameters()],
    "a moving average": lambda model, other: [p.data.lerp_(other[n], 0.01) for n, p in model.named_parameters()],
    "rows in another order": lambda model, other: swap(model[0].weight.data),
    "a single weight": lambda model, other: model[1].bias.data[0].add_(0.1),
    "the last bit of a weight": lambda model, other: last_bit(model[1].weight.data),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_weights_in_the_frozen_part_are_noticed(change):
    model, other = (nn.Sequential(*[nn.Linear(8, 8) for _ in range(5)]) for _ in range(2))
    inputs = torch.randn(4, 8)
    applied = Policy("freeze: ..2").apply(model, example=inputs, blocks=["1", "2", "3"])
    cache = PrefixCache()
    applied.use_cache(cache, n_samples=4)
    model.train()
    old, again = model(inputs), model(inputs)
    assert torch.equal(old, again)
    assert cache.hits == 4
    CHANGES[change](model, other.state_dict())
    new, after = model(inputs), model(inputs)
    assert cache.hits == 4  # counted anew
    applied.remove()
    assert torch.equal(new, model(inputs))
    assert torch.equal(new, after)
    assert not torch.equal(old, new) or change == "the last bit of a weight"


def test_activations_that_overflow_are_not_kept():
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)])
    model[1].bias.data[0] = 1e5
    inputs = torch.randn(4, 8)
    applied = Policy("freeze: ..1").apply(model, example=inputs, blocks=["1", "2"])
    cache = PrefixCache(dtype=torch.float16)
    applied.use_cache(cache, n_samples=4)
    first, second = model.train()(inputs), model(inputs)
    assert torch.equal(first, second)
    assert "1e+05 overflow torch.float16; use dtype=torch.bfloat16" in cache.off


@pytest.mark.parametrize("failure", ["it fails", "it is cut short"])
def test_a_disk_that_fills_up_ends_the_cache_and_not_the_training(failure, tmp_path, monkeypatch):
    class Small(io.FileIO):
        def write(self, data):
            if self.tell() < 64:
                return super().write(data)
            if failure == "it fails":
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data[:3])

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: Small(tmp_path / "small", "w+"))
    model, inputs = nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)]), torch.randn(4, 8)
    applied = Policy("freeze: ..1").apply(model, example=inputs, blocks=["1", "2"])
    cache = PrefixCache()
    applied.use_cache(cache, n_samples=4)
    assert torch.equal(model.train()(inputs), model(inputs))
    assert "No space left" in cache.off or "the disk is full" in cache.off


def test_a_forward_of_ones_own_is_left_in_place():
    """accelerate's hooks replace `forward` on a module, which replaying must bring back."""
    model = bert()
    block = model.bert.encoder.layer[0]
    own = block.forward = block.forward
    applied = Policy("freeze: ..50%").apply(model)
    cache = PrefixCache()
    applied.use_cache(cache, n_samples=4)
    model.train()
    for _ in range(2):
        model(texts(4).inputs)
    assert cache.hits == 4
    assert block.forward is own
    assert "forward" not in model.bert.encoder.layer[1].__dict__


@pytest.mark.slow
def test_a_new_phase_begins_anew(tmp_path):
    policy = Policy(phases=[("0", "tune: head"), ("2 epochs", "tune: -2.., head"), ("4 epochs", "tune: all")])
    cache = PrefixCache()
    found = []

    class Watch(TrainerCallback):
        def on_epoch_end(self, *args, **kwargs):
            found.append((cache.off, cache.hits, cache.cut.layer.name if cache.cut else ""))

    losses = []
    for one in (None, cache):
        watch = [Watch()] if one else []
        log = Losses()
        options = {"num_train_epochs": 5, "logging_strategy": "steps", "logging_steps": 1}
        trainer(bert(), tmp_path, [PolicyCallback(policy, cache=one), log, *watch], **options).train()
        losses.append(log.losses)
    last = "bert.encoder.layer.3"
    middle = "bert.encoder.layer.1"
    assert [row[1:] for row in found[:4]] == [(0, last), (32, last), (0, middle), (32, middle)]
    assert "no frozen" in found[4][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("specimen", TINY, ids=str)
def test_replay_of(specimen):
    """Every network of one tower, cut in the middle: the same output from what is remembered, or a refusal."""
    model = specimen.model()
    layers = list_layers(model)
    plan = Policy("tune: -1.., head").plans(layers)[0] if any(x.kind == "head" for x in layers) else None
    if plan is None:
        plan = Policy("tune: -1..").plans(layers)[0]
    cache = PrefixCache()
    batch = dummy_batch(model)
    args, kwargs = ((), batch) if isinstance(batch, dict) else ((batch,), {})
    before = state(model)
    with cache._without_side_effects(model):
        held = next((cut for cut in find_cuts(plan) if holds(model, cut, args, kwargs)), None)
    assert largest_difference(before, state(model)) == 0.0
    stem_trains = plan.lowest is layers[0]  # tied to the head
    if not stem_trains and specimen.calls == 1 and not specimen.name.startswith(("Albert", "Perceiver", "DebertaV2")):
        assert held
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_timm_in_a_loop_of_ones_own():
    model = timm.create_model("vit_tiny_patch16_224", depth=4, embed_dim=24, img_size=32, num_classes=3)
    applied = Policy("freeze: ..50%").apply(model)
    cache = PrefixCache()
    applied.use_cache(cache, n_samples=8)
    inputs = torch.randn(8, 3, 32, 32)
    model.train()
    outputs = [model(inputs[order]) for order in (slice(0, 4), slice(4, 8), slice(0, 4), slice(2, 6))]
    assert cache.hits == 8
    assert torch.equal(outputs[0], outputs[2])
    torch.testing.assert_close(outputs[3], torch.cat([outputs[0][2:], outputs[1][:2]]), rtol=0, atol=1e-6)
    model.eval()
    model(inputs)
    assert cache.lookups == 16
    applied.remove()
    assert not model._forward_pre_hooks
