"""What is fastest is measured without a trace, and taken only where it is clearly faster."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hf_tl import DataCollator, FullNetworkEmbedding, InputError, TaskDataset, accelerate_training, load_network
from hf_tl import acceleration as module
from hf_tl.acceleration import FASTER, Acceleration, measure_acceleration, set_layout
from hf_tl.data import load_task
from hf_tl.embedding.batches import Execution


WAYS = [(False, False), (True, False), (False, True), (True, True)]


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.head = nn.Linear(4, 2)
        self.seen = []

    def forward(self, pixel_values, labels=None):
        weight = self.body[0].weight
        last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        self.seen.append((last, torch.is_autocast_enabled("cpu") or weight.dtype == torch.bfloat16))
        logits = self.head(self.body(pixel_values).mean(dim=(2, 3)))
        return {"loss": None if labels is None else nn.functional.cross_entropy(logits, labels), "logits": logits}


def batch():
    return {"pixel_values": torch.rand(4, 3, 8, 8), "labels": torch.tensor([0, 1, 0, 1])}


@pytest.fixture
def clock(monkeypatch):
    """Steps take what the test says, by layout and precision."""
    real = module._step

    def set_times(times):
        def step(model, inputs, *, autocast):
            real(model, inputs, autocast=autocast)
            parameter = next(value for value in model.parameters() if value.ndim == 4 and value[0, 0].numel() > 1)
            last = not parameter.is_contiguous()
            return times[last, autocast or parameter.dtype == torch.bfloat16]

        monkeypatch.setattr(module, "_step", step)

    return set_times


@given(st.lists(st.floats(1e-6, 1e3), min_size=4, max_size=4))
def test_another_way_is_taken_only_where_it_is_clearly_faster(seconds):
    times = dict(zip(WAYS, seconds, strict=True))
    chosen = module._fastest(times)
    for way in WAYS[1:]:  # layouts of float32 and both precisions are compared, each by the same share
        assert times[chosen] <= times[way] / FASTER**2
    if chosen != WAYS[0]:
        assert times[chosen] < FASTER * times[WAYS[0]]
    if chosen[1]:
        assert times[chosen] < FASTER * times[chosen[0], False] or times[chosen] < FASTER * times[not chosen[0], False]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_a_measurement_leaves_no_trace(train, last):
    model = Small().train()
    model.head.eval()
    set_layout(model, channels_last=last)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    found = measure_acceleration(model, batch(), train=train)
    assert [way for way, _ in found.milliseconds] == WAYS
    assert all(ms > 0 for _, ms in found.milliseconds)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.head.weight.grad, torch.ones(2, 4))
    assert model.body[0].weight.grad is None
    assert model.training
    assert not model.head.training
    assert model.body[0].weight.is_contiguous() != last
    assert {*model.seen} == {way for way in WAYS if train or not way[1]}  # to read, a copy is in bfloat16


def test_random_numbers_go_on_as_without_a_measurement():
    model, given = Small(), batch()
    torch.manual_seed(3)
    measure_acceleration(model, given, train=True)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))


def test_what_bfloat16_cannot_do_is_not_taken():
    class Picky(Small):
        def forward(self, pixel_values, labels=None):
            if torch.is_autocast_enabled("cpu"):
                raise RuntimeError("'picky' not implemented for 'BFloat16'")
            return super().forward(pixel_values, labels)

    found = measure_acceleration(Picky(), batch(), train=True)
    assert not found.bf16
    assert [way for way, _ in found.milliseconds] == WAYS[:2]

    class Broken(Small):
        def forward(self, pixel_values, labels=None):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        measure_acceleration(Broken(), batch(), train=True)


def test_it_is_said_in_one_line():
    found = Acceleration(True, True, tuple(zip(WAYS, (4.0, 3.0, 2.0, 1.0), strict=True)))
    assert str(found) == (
        "channels last, bfloat16: 1 ms a sample (channels first, float32: 4, channels last, float32: 3, "
        "channels first, bfloat16: 2)"
    )
    assert str(Acceleration(False, False)) == "channels first, float32, unmeasured"


def test_a_file_of_something_else_is_refused(tmp_path):
    found = Acceleration(True, False, (((True, False), 2.0),))
    assert found.save(tmp_path / "a.json") == found
    assert Acceleration(False, True).save(tmp_path / "a.json") == found  # the first of several processes decides
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "b.json").write_text('{"bf16": true}')
    with pytest.raises(InputError, match=r"b.json' says of no acceleration: KeyError: 'milliseconds'; delete it"):
        Acceleration.load(tmp_path / "b.json")


@pytest.mark.parametrize("last", [True, False])
def test_a_network_is_loaded_with_the_faster_layout(last, clock, timm_folder):
    clock({(last, False): 1.0, (not last, False): 2.0})
    network = load_network(str(timm_folder), classes=["a", "b"], channels_last="auto", image_size=32)
    assert network.acceleration.channels_last == last
    kernels = [part.weight for part in network.model.modules() if isinstance(part, nn.Conv2d)]
    assert all(
        kernel.is_contiguous() != last for kernel in kernels if kernel[0, 0].numel() > 1 and kernel.shape[1] > 1
    )
    plain = load_network(str(timm_folder), image_size=32)
    assert plain.acceleration is None
    image = network.prepare([np.zeros((40, 40, 3), np.uint8)])
    other = load_network(str(timm_folder), image_size=32, channels_last=True)
    torch.testing.assert_close(other.model(image), plain.model(image))


@pytest.fixture
def training(timm_folder, image_folder, tmp_path):
    from transformers import TrainingArguments

    def make(**options):
        task = load_task(str(image_folder), modality="image")
        classes = task.train.class_names
        network = load_network(str(timm_folder), classes=classes, image_size=32)
        arguments = TrainingArguments(
            str(tmp_path / "run"), use_cpu=True, remove_unused_columns=False, report_to=[], max_steps=1, **options
        )
        return network, arguments, TaskDataset(task.train, classes), DataCollator(network)

    return make


@pytest.mark.parametrize("fastest", WAYS)
def test_a_trainer_computes_as_was_chosen(fastest, clock, training):
    from transformers import Trainer

    clock({way: 1.0 if way == fastest else 2.0 for way in WAYS})
    network, arguments, dataset, collator = training()
    chosen = accelerate_training(network.model, arguments, dataset, collator)
    assert (chosen.channels_last, chosen.bf16) == fastest
    assert arguments.bf16 == fastest[1]
    seen = []
    network.model.timm_model.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    trainer = Trainer(network.model, arguments, train_dataset=dataset, data_collator=collator)
    assert np.isfinite(trainer.train().training_loss)
    assert seen == [fastest[1]]
    trainer.save_model()
    saved = load_network(arguments.output_dir, classes=list(network.model.config.id2label.values())).model
    assert all(torch.equal(value, network.model.state_dict()[name]) for name, value in saved.state_dict().items())


def test_a_precision_that_was_asked_for_stays_and_a_resumed_training_goes_on_as_it_began(clock, training):
    clock({way: 1.0 if way == (False, False) else 2.0 for way in WAYS})
    network, arguments, *data = training(bf16=True)
    assert str(accelerate_training(network.model, arguments, *data)) == (
        "channels first, bfloat16: 250 ms a sample (channels last, bfloat16: 250)"
    )
    assert arguments.mixed_precision == "bf16"
    clock({way: 1.0 if way == (True, True) else 2.0 for way in WAYS})
    network, arguments, *data = training(resume_from_checkpoint="checkpoint-1")
    assert not accelerate_training(network.model, arguments, *data).channels_last
    network, arguments, *data = training()
    assert accelerate_training(network.model, arguments, *data).channels_last


def test_what_cannot_be_chosen_is_refused(training, timm_folder):
    network, arguments, _, collator = training()
    with pytest.raises(InputError, match="train_dataset has no samples"):
        accelerate_training(network.model, arguments, [], collator)
    with pytest.raises(InputError, match="channels_last should be True, False or 'auto', got 'yes'"):
        load_network(str(timm_folder), channels_last="yes")


def test_a_sharded_network_is_left_alone(monkeypatch, training):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    network, arguments, *data = training()
    assert accelerate_training(network.model, arguments, *data) == Acceleration(False, False)


@pytest.mark.parametrize("columns", [True, False])
def test_columns_that_the_network_does_not_take_are_left_out_as_trainer_does(columns, clock, tmp_path):
    from datasets import Dataset
    from transformers import TrainingArguments

    clock(dict.fromkeys(WAYS, 1.0))
    rows = Dataset.from_list(
        [{"pixel_values": np.zeros((3, 8, 8)).tolist(), "labels": i, "text": "a"} for i in (0, 1)]
    )
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, remove_unused_columns=columns, report_to=[])
    assert not accelerate_training(Small(), arguments, rows.with_format("torch")).bf16


def test_an_embedding_finds_its_precision_once(clock, timm_folder, image_folder, tmp_path):
    task = load_task(str(image_folder), modality="image")
    network = load_network(str(timm_folder), image_size=32)
    clock({way: 1.0 if way[1] else 2.0 for way in WAYS})
    found = FullNetworkEmbedding(network, dtype="auto", progress=False)
    assert found.dtype_name == "float32"  # nothing was read
    values = found.fit_transform(task.train, out=tmp_path / "train")
    explicit = FullNetworkEmbedding(network, dtype="bfloat16", progress=False).fit(task.train)
    assert found.dtype_ == found.dtype_name == "bfloat16"
    np.testing.assert_array_equal(values.values[:], explicit.transform(task.train).values)
    clock({way: 2.0 if way[1] else 1.0 for way in WAYS})
    np.testing.assert_array_equal(found.transform(task.test).values, explicit.transform(task.test).values)
    again = FullNetworkEmbedding(network, dtype="auto", progress=False)
    again.fit_transform(task.train, out=tmp_path / "train")  # a folder says what it was begun with
    assert again.dtype_ == "bfloat16"
    saved = found.save_pretrained(tmp_path / "fitted")
    assert json.loads((saved / "embedding_config.json").read_text())["dtype"] == "bfloat16"
    assert FullNetworkEmbedding(network, dtype="auto", progress=False).fit(task.train).dtype_ == "float32"
    loaded = FullNetworkEmbedding.from_pretrained(str(saved), network=network, dtype="auto", progress=False)
    np.testing.assert_array_equal(loaded.transform(task.test).values, explicit.transform(task.test).values)
    whole = FullNetworkEmbedding(network, dtype="auto", progress=False).partial_fit(task.train)
    clock({way: 1.0 if way[1] else 2.0 for way in WAYS})
    assert whole.partial_fit(task.test).dtype_ == "float32"  # what the first samples were read in
    assert explicit.merge(found).dtype == "bfloat16"
    with pytest.raises(InputError, match="one of the two read in float32, the other in bfloat16"):
        whole.merge(found)
    with pytest.raises(InputError, match="only FullNetworkEmbedding finds it by itself"):
        Execution(dtype="auto").check()
