"""Adapters in training: the same steps as PEFT's, under every way of running a network."""

import copy
from pathlib import Path

import peft
import pytest
import torch
from closeness import ulps
from parity_rows import ROWS, Row, copy_to_ours, live_names, make_pair, randomise
from torch import nn

from hf_tl import (
    LoraConfig,
    add_lora,
    create_loraplus_groups,
    delete_adapter,
    merge_adapter,
    set_adapter,
    unmerge_adapter,
)
from hf_tl.lora.adapted import adapter_state_dict, record_of
from hf_tl.trace import first_float, forward


def row(name) -> Row:
    return next(row for row in ROWS if row.name == name)


def train(model, batch, *, steps=20, autocast=None, scaler=None, seed=11):
    """Losses of AdamW's steps towards fixed random outputs."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for step in range(steps):
        torch.manual_seed(seed + step)
        with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            value = first_float(forward(model.train(), batch)).float()
            target = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
            loss = (value - target).square().mean()
        losses.append(loss.item())
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
    return losses


def trained(model):
    return {name: p.detach() for name, p in live_names(model).items() if p.requires_grad}


def far(ours, theirs):
    return max(((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()).item() for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mlp head", "bert dense", "conv2d and linear", "llama all-linear", "timm vit", "gpt2"]
)
def test_twenty_steps_of_adamw_are_peft_s(name):
    pair = make_pair(row(name))
    ours, theirs = train(pair.ours, pair.batch), train(pair.peft, pair.batch)
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours[-1] < ours[0]
    assert far(trained(pair.ours), trained(pair.peft)) < 1e-3  # Adam's steps do not shrink with a small gradient


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert dropout", "mlp dora", "mlp odd scaling"])
def test_twenty_steps_that_round_differently_stay_close(name):
    pair = make_pair(row(name))
    assert train(pair.ours, pair.batch) == pytest.approx(train(pair.peft, pair.batch), rel=1e-3)


def test_float16_with_a_gradient_scaler():
    pair = make_pair(row("bert dense"))
    losses = []
    for model in (pair.ours, pair.peft):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        losses.append(train(model, pair.batch, autocast=torch.float16, scaler=scaler, steps=10))
        assert scaler.get_scale() == 2.0**10  # no step overflowed
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize("name", ["bert dense", "bert dropout", "vit", "conv2d", "embedding", "mlp dora"])
def test_autocast(name):
    pair = make_pair(row(name))
    assert train(pair.ours, pair.batch, autocast=torch.bfloat16, steps=5) == pytest.approx(
        train(pair.peft, pair.batch, autocast=torch.bfloat16, steps=5), rel=3e-2
    )


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant):
    pair = make_pair(row("bert dropout"))
    straight, again = pair.ours, copy.deepcopy(pair.ours)
    again.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert train(again, pair.batch, steps=4) == train(straight, pair.batch, steps=4)
    assert far(trained(again), trained(straight)) == 0.0
    assert all(p.grad is None for name, p in live_names(again).items() if not p.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert dense", "bert dropout", "vit", "mlp dora", "conv2d", "embedding"])
def test_one_graph_under_compile(name):
    torch._dynamo.reset()
    pair = make_pair(row(name))
    randomise(pair)
    model = pair.ours.eval() if pair.row.config.get("lora_dropout") else pair.ours.train()
    for module in model.modules():  # the network's own dropout draws other numbers when compiled
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    values, gradients = [], []
    for one in (model, compiled):
        model.zero_grad()
        value = first_float(forward(one, pair.batch))
        value.square().sum().backward()
        values.append(value.detach())
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert torch.allclose(values[0], values[1], rtol=1e-5, atol=1e-6)
    assert far(gradients[1], gradients[0]) < 1e-4


def test_two_active_adapters_add_up_as_in_peft():
    pair = make_pair(row("mlp"))
    randomise(pair)
    second = {"r": 4, "lora_alpha": 16, "target_modules": ["lin1", "head"]}
    pair.peft.add_adapter("second", peft.LoraConfig(**second))
    add_lora(pair.ours, LoraConfig(modules_to_save=(), **second), adapter_name="second")
    theirs = peft.get_peft_model_state_dict(pair.peft, adapter_name="second")
    ours = adapter_state_dict(pair.ours, adapter_name="second")
    assert sorted(ours) == sorted(theirs)
    for name, tensor in theirs.items():
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2)) * 0.1)
        ours[name].copy_(tensor)
    for active in (["default"], ["second"], ["default", "second"]):
        pair.peft.base_model.set_adapter(active)
        set_adapter(pair.ours, active)
        expected = pair.peft(pair.batch)
        assert ulps(pair.ours(pair.batch), expected) < 16, active
        merged = copy.deepcopy(pair.ours)
        merge_adapter(merged)
        assert torch.allclose(merged(pair.batch), expected, atol=1e-5)
        unmerge_adapter(merged)
        assert torch.equal(merged(pair.batch), pair.ours(pair.batch))
    assert train(pair.ours, pair.batch) == pytest.approx(train(pair.peft, pair.batch), rel=1e-4)
    delete_adapter(pair.ours, adapter_names=["default"])
    pair.peft.delete_adapter("default")
    pair.peft.base_model.set_adapter(["second"])
    assert record_of(pair.ours).active == ["second"]
    assert ulps(pair.ours(pair.batch), pair.peft(pair.batch)) < 16


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT reads it
def test_tied_embeddings_stay_tied_and_merge_apart():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=30, tie_word_embeddings=True, pad_token_id=0, **sizes))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    config = {"r": 4, "target_modules": ["embed_tokens", "q_proj"]}
    theirs = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**config))
    ours = add_lora(copy.deepcopy(model), LoraConfig(**config))
    pair = type("Pair", (), {"peft": theirs, "ours": ours})
    randomise(pair)
    ids = torch.arange(1, 9)[None]
    expected = theirs(input_ids=ids).logits
    expected_by_us = ours(input_ids=ids).logits
    assert ulps(expected_by_us, expected) < 16
    merge_adapter(ours)
    assert torch.allclose(ours(input_ids=ids).logits, expected, atol=1e-5)  # the words' side keeps the old table
    assert ours.lm_head.weight is not ours.model.embed_tokens.base_layer.weight
    unmerge_adapter(ours)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    assert torch.equal(ours(input_ids=ids).logits, expected_by_us)


def test_a_quantised_layer_is_adapted_beside():
    class Quantised(nn.Linear):
        """Weights of eight bits, as quantisers store them."""

        def __init__(self, linear):
            super().__init__(linear.in_features, linear.out_features)
            self.scale = linear.weight.detach().abs().max() / 127
            self.weight = nn.Parameter(
                (linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False
            )
            self.bias = linear.bias

        def forward(self, x):
            return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)

    torch.manual_seed(0)
    model = nn.Sequential(Quantised(nn.Linear(8, 8)), nn.ReLU(), Quantised(nn.Linear(8, 8)))
    x = torch.randn(4, 8)
    expected = model(x)
    add_lora(model, LoraConfig(r=2, target_modules=["0", "2"]))
    assert torch.equal(model(x), expected)
    losses = train(model, x, steps=10)
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match=r"stored as torch\.int8, in a form of its own"):
        merge_adapter(model)


def test_lora_plus_groups_reach_trainer(tmp_path):
    from transformers import Trainer, TrainingArguments

    pair = make_pair(row("bert dense"))
    groups = create_loraplus_groups(pair.ours, lr=1e-3, ratio=8.0, weight_decay=0.1)
    assert {group["name"]: (group["lr"], group["weight_decay"]) for group in groups} == {
        "lora_A": (1e-3, 0.1),
        "lora_B": (8e-3, 0.1),
        "other": (1e-3, 0.1),
        "other (no decay)": (1e-3, 0.0),
    }
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in pair.ours.parameters())
    rows = [{"input_ids": [1, 2, 3], "labels": i % 3} for i in range(8)]
    args = TrainingArguments(tmp_path, max_steps=4, per_device_train_batch_size=4, report_to=[], use_cpu=True)
    trainer = Trainer(pair.ours, args, train_dataset=rows, optimizers=(torch.optim.AdamW(groups), None))
    trainer.train()
    rates = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates["lora_B"] == pytest.approx(8 * rates["lora_A"])
    with pytest.raises(ValueError, match="ratio must be above 0, got -1"):
        create_loraplus_groups(pair.ours, lr=1e-3, ratio=-1)


WORKER = Path(__file__).parent / "ddp_worker.py"


@pytest.mark.dist
@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(tmp_path, processes):
    processes.succeed(WORKER, tmp_path / "two.pt", ranks=2)
    processes.succeed(WORKER, tmp_path / "one.pt")
    two, one = torch.load(tmp_path / "two.pt"), torch.load(tmp_path / "one.pt")
    assert two["world"] == 2
    assert one["world"] == 1
    assert far(two["adapter"], one["adapter"]) < 1e-4
    assert two["same on both"]


def test_copies_keep_apart():
    pair = make_pair(row("mlp head"))
    other = copy.deepcopy(pair.ours)
    assert record_of(other).model is other
    randomise(pair)
    assert not torch.equal(pair.ours(pair.batch), other(pair.batch))
    copy_to_ours(pair)
