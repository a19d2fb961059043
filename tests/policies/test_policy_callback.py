"""PolicyCallback in Trainer: the frozen stands still, the tuned moves at its rate, a resume changes nothing."""

import gc
import pickle
import weakref
from copy import deepcopy

import pytest
import torch
from lanes import lanes
from training import bert, images, largest_difference, network, state, texts, trainer
from transformers import TrainerCallback

from hf_tl import InputError, Policy, PolicyCallback, list_layers, select_layers


pytestmark = pytest.mark.filterwarnings("ignore")


def moved(model, before):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNetForImageClassification", "MobileNetV2ForImageClassification"])
def test_frozen_layers_stand_still_with_their_statistics(name, tmp_path):
    model = network(name)
    before = state(model)
    training = trainer(model, tmp_path, [PolicyCallback("freeze: ..50%")], images(side=32), max_steps=8)
    training.train()
    assert training.state.global_step == 8
    frozen = select_layers(list_layers(model), "..50%")
    inside = tuple(f"{name}." for layer in frozen for name, _ in layer.modules)
    statistics = [name for name in before if name.startswith(inside) and "running_mean" in name]
    assert len(statistics) >= 3
    assert max((state(model)[name] - before[name]).abs().max() for name in statistics) == 0.0
    assert not [name for name in moved(model, before) if name.startswith(inside)]
    others = [name for name in before if not name.startswith(inside) and "running_mean" in name]
    assert len(others) >= 3
    assert set(others) <= moved(model, before)


def test_without_the_callback_statistics_of_frozen_layers_move(tmp_path):
    """The trap: eval() does not hold, as Trainer calls train() within each step."""
    model = network("ResNetForImageClassification").requires_grad_(False)
    model.classifier.requires_grad_(True)

    class Eval(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **kwargs):
            model.eval()

    before = state(model)
    trainer(model, tmp_path, [Eval()], images(side=32), max_steps=1).train()
    assert "resnet.embedder.embedder.normalization.running_mean" in moved(model, before)


def test_dropout_of_frozen_layers_is_off_unless_wanted(tmp_path):
    outputs = {}
    for text in ("freeze: ..50%", "freeze: ..50%; dropout: on"):
        model = bert(dropout=0.5)
        Policy(text).apply(model)
        model.train()
        seen = []
        with model.bert.encoder.layer[1].register_forward_hook(lambda m, a, out, seen=seen: seen.append(out[0])):
            for _ in range(2):
                model.train()
                model(texts().inputs[:2])
        outputs[text] = torch.equal(*seen)
        assert model.bert.encoder.layer[2].training
    assert list(outputs.values()) == [True, False]


def test_the_guard_survives_deepcopy_and_pickle():
    model = network("ResNetForImageClassification")
    Policy("freeze: ..50%").apply(model)
    for twin in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = state(twin)
        twin.train()
        twin(images().inputs[:4])
        changed = moved(twin, before)
        assert changed
        assert not any("embedder" in name for name in changed)


@pytest.mark.slow
def test_rates_equal_a_hand_built_optimizer(tmp_path):
    ours, theirs = bert(), bert()
    options = {"lr_scheduler_type": "cosine", "warmup_steps": 2, "max_steps": 6, "weight_decay": 0.1}
    trainer(ours, tmp_path / "ours", [PolicyCallback("lr: decay 0.5; lr: x2 head")], **options).train()

    training = trainer(theirs, tmp_path / "theirs", **options)
    decayed = set(training.get_decay_parameter_names(theirs))
    groups = []
    for name, parameter in theirs.named_parameters():
        height = 0
        if name.startswith("bert.embeddings"):
            height = 5
        elif name.startswith("bert.encoder.layer."):
            height = 4 - int(name.split(".")[3])
        rate = 1e-2 * 0.5**height * (2 if name.startswith(("classifier", "bert.pooler")) else 1)
        groups.append({"params": [parameter], "lr": rate, "weight_decay": 0.1 if name in decayed else 0.0})
    training.optimizer = torch.optim.AdamW(groups, lr=1e-2, fused=True)  # as Trainer does
    training.train()
    assert largest_difference(state(ours), state(theirs)) <= 1e-7
    assert largest_difference(state(ours), state(bert())) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        ("linear", {}),
        ("constant_with_warmup", {}),
        ("polynomial", {}),
        ("inverse_sqrt", {}),
        ("cosine_with_min_lr", {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}}),
        ("warmup_stable_decay", {"lr_scheduler_kwargs": {"num_decay_steps": 1}}),
        ("reduce_lr_on_plateau", {"eval_strategy": "steps", "eval_steps": 2}),
    ],
)
def test_rates_under_every_scheduler(scheduler, options, tmp_path):
    """SGD without momentum: a layer at rate x0.5 moves as under half the learning rate, and the others as usual."""
    optimizer = {"optim": "sgd", "lr_scheduler_type": scheduler, "max_steps": 1} | options
    ours, plain = bert().double(), bert().double()  # so that halving is not lost in rounding
    start = state(ours)
    trainer(ours, tmp_path, [PolicyCallback("lr: x0.5 ..50%")], **optimizer).train()
    trainer(plain, tmp_path, **optimizer).train()
    for name, tensor in state(plain).items():
        low = name.startswith(("bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1"))
        expected = start[name] + (tensor - start[name]) * (0.5 if low else 1.0)
        torch.testing.assert_close(state(ours)[name], expected, rtol=0, atol=1e-12)
    assert largest_difference(start, state(plain)) > 1e-4
    longer = bert()
    trainer(longer, tmp_path, [PolicyCallback("lr: x0.5 ..50%")], **optimizer | {"max_steps": 3}).train()


@pytest.mark.slow
def test_a_plain_trainer_resumes_a_checkpoint_with_rates(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    with_rates = trainer(bert(), tmp_path, [PolicyCallback("lr: decay 0.5")], **options)
    with_rates.train()
    saved = torch.load(tmp_path / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert [group["lr"] for group in saved["param_groups"]] == [pytest.approx(5e-3)] * 2
    assert len(saved["param_groups"]) == 2
    plain = trainer(bert(), tmp_path / "plain", **options)
    plain.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert plain.state.global_step == 4
    back = trainer(bert(), tmp_path / "back", [PolicyCallback("lr: decay 0.5")], **options)
    back.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-4"))


POLICIES = {
    "static": Policy("freeze: ..25%; reinit: -1.., head; lr: decay 0.7", seed=3),
    "gradual": Policy.gradual(every=1, unit="step", text="lr: decay 0.7"),
    "epochs": Policy.gradual(every=1, blocks=2),
    "lp_ft": Policy.lp_ft(probe="3 steps", rate=0.5, text="reinit: head"),
    "plateau": Policy("norm: eval", [("0", "tune: head"), ("plateau eval_loss 1 max", "tune: all; lr: x0.3")]),
    "auto_rgn": Policy.auto_rgn(),
    "l2_sp": Policy("reinit: head", l2_sp=0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", lanes(POLICIES, fast=("gradual", "plateau").__contains__))
def test_straight_equals_resumed(name, tmp_path):
    options = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 3, "weight_decay": 0.1}
    if name == "plateau":
        options |= {"eval_strategy": "steps", "eval_steps": 1}
    data = texts(8)
    seen = {}
    for run in ("straight", "resumed"):
        callback = PolicyCallback(POLICIES[name])
        phases = seen[run] = []

        class Watch(TrainerCallback):
            def on_pre_optimizer_step(self, *args, callback=callback, phases=phases, **kwargs):
                phases.append(callback.applied.phase)

        model = bert(dropout=0.1)
        if run == "resumed":
            model.classifier.reset_parameters()  # whatever it begins with, the checkpoint wins
        training = trainer(model, tmp_path / run, [callback, Watch()], data, **options)
        training.train(
            resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-3") if run == "resumed" else None
        )
        assert training.state.global_step == 6
        seen[f"{run} state"] = state(model)
    assert len(seen["straight"]) == 6
    assert len(seen["resumed"]) == 3
    assert seen["straight"][3:] == seen["resumed"]
    if len(callback.applied.plans) > 1:
        assert len(set(seen["straight"])) > 1
    assert largest_difference(seen["straight state"], seen["resumed state"]) == 0.0


def test_phases_keep_the_state_of_the_optimizer(tmp_path):
    """A layer that is frozen again neither moves nor decays, and goes on with its own moments later."""
    phases = [("0", "tune: 3, head"), ("3 steps", "tune: head"), ("6 steps", "tune: all")]
    model, states = bert(), []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state_, control, model, optimizer, **kwargs):
            weight = model.bert.encoder.layer[3].output.dense.weight
            kept = optimizer.state.get(weight, {})
            states.append((weight.detach().clone(), float(kept.get("step", 0)), len(optimizer.optimizer.param_groups)))

    callbacks = [PolicyCallback(Policy(phases=phases)), Watch()]
    trainer(model, tmp_path, callbacks, max_steps=8, weight_decay=0.5).train()
    assert [steps for _, steps, _ in states] == [1, 2, 3, 3, 3, 3, 4, 5]
    assert {groups for _, _, groups in states} == {2}
    assert torch.equal(states[2][0], states[5][0])
    assert not torch.equal(states[5][0], states[6][0])


def test_a_layer_that_is_frozen_again_has_no_gradient_left():
    """Where a loop keeps gradients from step to step, the optimizer would go on moving it."""
    model = bert()
    applied = Policy(phases=[("0", "tune: 3, head"), ("1 step", "tune: head")]).apply(model)
    model(texts().inputs[:2], labels=texts().labels[:2]).loss.backward()
    weight = model.bert.encoder.layer[3].output.dense.weight
    assert weight.grad is not None
    applied.advance(step=1)
    assert weight.grad is None
    assert model.classifier.weight.grad is not None


def reached(model, batch):
    """The blocks whose outputs are part of the graph."""
    seen = []
    hooks = [
        layer.register_forward_hook(lambda m, a, out, i=i: seen.append(i) if first(out).requires_grad else None)
        for i, layer in enumerate(model.bert.encoder.layer)
    ]
    model.train()
    model(**batch).loss.backward()
    for hook in hooks:
        hook.remove()
    return sorted(set(seen)), sum(parameter.grad is not None for parameter in model.parameters())


def first(output):
    return output if isinstance(output, torch.Tensor) else output[0]


@pytest.mark.slow
def test_backward_stops_below_the_lowest_layer_also_with_checkpointing(tmp_path):
    batch = {"input_ids": texts().inputs[:2], "labels": texts().labels[:2]}
    plain = bert()
    Policy("freeze: ..75%").apply(plain)
    counts = reached(plain, batch)
    assert counts[0] == [3]

    class Probe(TrainerCallback):
        def on_step_begin(self, args, state_, control, model, **kwargs):
            self.found = reached(model, batch)
            model.zero_grad()

    for policies, expected in [([PolicyCallback("freeze: ..75%")], counts), ([], None)]:
        probe = Probe()
        options = {"gradient_checkpointing": True, "max_steps": 1}
        options |= {"gradient_checkpointing_kwargs": {"use_reentrant": False}}
        trainer(bert(), tmp_path, [*policies, probe], **options).train()
        if expected:
            assert probe.found == expected
        else:
            assert probe.found[0] == [0, 1, 2, 3]


def test_a_stray_trainable_stem_is_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="'stem' trains below 2 frozen layers.*backward runs through all of them"):
        Policy("freeze: 0, 1").apply(bert())
    with pytest.warns(UserWarning, match="batch norms of frozen layers keep moving .*'norm: eval' stops them"):
        Policy("freeze: ..50%; norm: train").apply(network("ResNetForImageClassification"))


def test_a_loop_of_ones_own():
    """apply, param_groups and advance: the same as Trainer does."""
    model, policy = bert(), Policy("freeze: ..50%; lr: decay 0.5")
    before = state(model)
    groups = policy.param_groups(model, lr=1e-2, weight_decay=0.1)
    assert {group["lr"] for group in groups} == {1e-2, 5e-3, 2.5e-3}
    policy.apply(model)
    optimizer = torch.optim.AdamW(groups)
    model(texts().inputs[:4], labels=texts().labels[:4]).loss.backward()
    optimizer.step()
    assert not [
        name for name in moved(model, before) if "embeddings" in name or "layer.0" in name or "layer.1" in name
    ]
    assert [name for name in moved(model, before) if "layer.2" in name]
    named = policy.param_groups(model, lr=1e-2, blocks=["bert.encoder.layer.[23]"])
    assert {group["lr"] for group in named} == {1e-2, 5e-3}  # of two blocks, the lower half is one
    with pytest.raises(InputError, match=r"plain groups and call \.attach\(optimizer\)"):
        Policy.lp_ft(probe="1 step", rate=0.1).param_groups(model, lr=1.0)


def test_attached_rates_and_phases_in_a_loop_of_ones_own():
    model = bert()
    applied = Policy.lp_ft(probe="1 step", rate=0.25).apply(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    applied.attach(optimizer)
    steps = []
    for step in range(2):
        applied.advance(step=step)
        model.zero_grad()
        model(texts().inputs[:4], labels=texts().labels[:4]).loss.backward()
        weight = model.classifier.weight.detach().clone()
        optimizer.step()
        ratio = (weight - model.classifier.weight).norm() / model.classifier.weight.grad.norm()
        steps.append(round(ratio.item(), 4))
    assert steps == [1.0, 0.25]
    assert len(optimizer.param_groups) == 1
    assert model.bert.pooler.dense.weight.requires_grad


def test_l2_sp_adds_the_gradient_of_its_penalty():
    twins = [bert(), bert()]
    start = state(twins[0])
    applied = Policy("reinit: head; tune: all", l2_sp=0.5).apply(twins[0])
    twins[1].load_state_dict(twins[0].state_dict())
    optimizers = [torch.optim.SGD(twin.parameters(), lr=0.1) for twin in twins]
    applied.attach(optimizers[0])
    for _ in range(3):
        for twin, optimizer in zip(twins, optimizers, strict=True):
            twin.zero_grad()
            loss = twin(texts().inputs[:4], labels=texts().labels[:4]).loss
            if twin is twins[1]:
                pulled = [
                    p - start[n] for n, p in twin.named_parameters() if "pooler" not in n and "classifier" not in n
                ]
                loss = loss + 0.25 * sum(away.square().sum() for away in pulled)
            loss.backward()
            optimizer.step()
    assert largest_difference(state(twins[0]), state(twins[1])) < 1e-6


def test_auto_rgn_scales_by_relative_gradients():
    model = bert().double()
    applied = Policy.auto_rgn().apply(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    applied.attach(optimizer)
    model(texts().inputs[:4], labels=texts().labels[:4]).loss.backward()
    before = state(model)
    ratios = {}
    for layer in applied.layers:
        own = [p for p in layer.parameters() if p.grad is not None]
        ratios[layer.name] = (
            torch.cat([p.grad.flatten() for p in own]).norm() / torch.cat([p.detach().flatten() for p in own]).norm()
        )
    optimizer.step()
    weight = model.bert.encoder.layer[1].output.dense.weight
    step = (before["bert.encoder.layer.1.output.dense.weight"] - weight).norm() / weight.grad.norm() / 1e-3
    assert step.item() == pytest.approx((ratios["bert.encoder.layer.1"] / max(ratios.values())).item(), rel=1e-3)


@pytest.mark.slow
def test_late_callbacks_and_model_init_are_refused(tmp_path):
    late = trainer(bert(), tmp_path)
    late.add_callback(PolicyCallback("freeze: 0"))
    with pytest.raises(InputError, match=r"after the Trainer was built.*callbacks=\[PolicyCallback"):
        late.train()
    made = trainer(None, tmp_path, [PolicyCallback("freeze: stem, 0")], model_init=lambda: bert())
    with pytest.raises(InputError, match=r"another model in train\(\), by model_init"):
        made.train()
    with pytest.raises(InputError, match="a Trainer takes one PolicyCallback"):
        trainer(bert(), tmp_path, [PolicyCallback("freeze: stem"), PolicyCallback("freeze: stem, 0")])
    with pytest.raises(InputError, match="its text or a Policy, got int"):
        PolicyCallback(3)
    with pytest.raises(InputError, match="no Trainer yet"):
        PolicyCallback("freeze: 0").dry_run()


@pytest.mark.slow
def test_a_callback_is_for_one_trainer_and_a_model_for_the_last(tmp_path):
    model, callback = bert(), PolicyCallback("freeze: stem, 0; reinit: head")
    first = trainer(model, tmp_path, [callback], max_steps=1)
    head = model.classifier.weight.detach().clone()
    with pytest.raises(InputError, match="belongs to another Trainer; make a new one for each Trainer"):
        trainer(bert(), tmp_path, [callback])
    second = trainer(model, tmp_path, [PolicyCallback("freeze: ..50%")], max_steps=1)
    with pytest.raises(InputError, match=r"layer\.1\..* is frozen, .* a later PolicyCallback"):
        first.train()
    assert torch.equal(model.classifier.weight, head)
    second.train()
    second.train()  # again, from where it stands


@pytest.mark.slow
def test_reinit_waits_for_training(tmp_path):
    """The script that trained a model, run again to evaluate it, evaluates what was trained."""
    policy = Policy("reinit: -1, head", [("0", "tune: head"), ("2 steps", "tune: all")])
    model = bert()
    first = trainer(model, tmp_path, [PolicyCallback(policy)], max_steps=3, save_strategy="steps", save_steps=2)
    before = state(model)
    loss = first.evaluate()["eval_loss"]
    assert not moved(model, before)
    first.train()
    assert {"classifier.weight", "bert.encoder.layer.3.output.dense.weight"} <= moved(model, before)
    first.save_model(tmp_path / "trained")
    again = type(model).from_pretrained(tmp_path / "trained")
    second = trainer(again, tmp_path, [PolicyCallback(policy)])
    assert second.evaluate()["eval_loss"] == pytest.approx(first.evaluate()["eval_loss"], rel=1e-5)
    assert second.evaluate()["eval_loss"] != pytest.approx(loss, rel=1e-3)
    other = bert()
    resumed = trainer(other, tmp_path / "resumed", [PolicyCallback(policy)], max_steps=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert largest_difference(state(other), state(model)) == 0.0


class Counting(torch.optim.SGD):
    """Counts its steps in its groups, as schedule-free optimizers do."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1
            for parameter in group["params"]:
                parameter.sub_(parameter.grad, alpha=group["lr"] / group["steps"])


def test_what_an_optimizer_counts_in_its_groups_is_kept():
    net = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(4)])
    applied = Policy("lr: decay 0.5").apply(net, example=torch.ones(1, 2))
    optimizer = Counting([{"params": net[:2].parameters()}, {"params": net[2:].parameters(), "lr": 0.1}], lr=0.2)
    applied.attach(optimizer)
    for _ in range(3):
        net(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert [group["steps"] for group in optimizer.param_groups] == [3, 3]
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.1]
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 4]


def test_what_is_not_supported_is_refused_before_anything_changes(tmp_path):
    model = bert()
    before = state(model)
    phases = Policy("reinit: 3", [("0", "tune: head, 3"), ("1 step", "tune: all")])
    with pytest.raises(InputError, match=r"ddp_find_unused_parameters=False cannot have phases"):
        trainer(model, tmp_path, [PolicyCallback(phases)], ddp_find_unused_parameters=False)
    with pytest.raises(InputError, match="steps within backward and cannot have rates by layer"):
        trainer(model, tmp_path, [PolicyCallback("lr: decay 0.5")], optim="galore_adamw_layerwise")
    assert not moved(model, before)
    assert all(parameter.requires_grad for parameter in model.parameters())
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(InputError, match="reentrant gradient checkpointing over frozen layers loses gradients"):
        trainer(bert(), tmp_path, [PolicyCallback("freeze: ..50%")], **reentrant).train()


@pytest.mark.parametrize(("strategy", "name"), [("deepspeed", "DeepSpeed"), ("fsdp", "FSDP")])
def test_sharding_strategies_are_refused_by_name(strategy, name, tmp_path):
    training = trainer(bert(), tmp_path)
    callback = PolicyCallback(Policy.gradual())
    setattr(training.args, strategy, "config")  # the packages themselves are not here
    with pytest.raises(InputError, match=f"{name} .* cannot have phases that change what trains"):
        callback.on_init_end(training.args, training.state, training.control, model=training.model)
    static = PolicyCallback("freeze: ..50%")
    static.on_init_end(training.args, training.state, training.control, model=training.model)


@pytest.fixture
def one_process_group(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_reinit_waits_for_training_under_fsdp_too(one_process_group, tmp_path):
    """A script that only evaluates keeps what it was given; one that trains writes into the shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    plain = bert()
    Policy("reinit: -1, head", seed=4).apply(plain)
    training = trainer(bert(), tmp_path)
    model, callback = training.model, PolicyCallback("reinit: -1, head", seed=4)
    before = state(model)
    training.args.fsdp = "config"
    callback.on_init_end(training.args, training.state, training.control, model=model)
    assert not moved(model, before)
    for module in (*model.bert.encoder.layer, model):
        fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
    callback.on_train_begin(training.args, training.state, training.control, model=model)
    whole = {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in state(model).items()
    }
    assert largest_difference(whole, state(plain)) == 0.0


class Quantised(torch.nn.Linear):
    """Weights of eight bits that unfold as it runs."""

    def __init__(self, n: int):
        super().__init__(n, n)
        self.weight = torch.nn.Parameter((self.weight.detach() * 100).to(torch.int8), requires_grad=False)

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.float() / 100, self.bias)


def test_quantised_weights_cannot_be_tuned():
    model = bert()
    model.bert.encoder.layer[1].attention.output.dense = Quantised(16)
    before = state(model)
    with pytest.raises(
        InputError, match=r"'bert\.encoder\.layer\.1\.attention\.output\.dense\.weight' holds torch\.int8, quantised"
    ):
        Policy("reinit: head").apply(model)
    assert not moved(model, before)
    applied = Policy("freeze: ..50%; reinit: head").apply(model)
    assert applied.plan.lowest.index == 2
    model(texts().inputs[:2], labels=texts().labels[:2]).loss.backward()
    assert model.bert.encoder.layer[1].attention.output.dense.weight.grad is None


def test_a_plateau_without_evaluations_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"'plateau eval_loss 2' waits for evaluations.*set eval_strategy='epoch'"):
        trainer(bert(), tmp_path, [PolicyCallback(Policy.lp_ft(probe="plateau eval_loss 2"))])


@pytest.mark.slow
def test_the_model_is_freed_with_its_trainer(tmp_path):
    model = bert()
    gone = weakref.ref(model)
    training = trainer(model, tmp_path, [PolicyCallback("freeze: ..50%")], max_steps=1)
    training.train()
    del model, training
    gc.collect()
    assert gone() is None


def test_dry_run_of_the_callback_shows_the_rates_of_the_trainer(tmp_path):
    callback = PolicyCallback("freeze: ..50%; lr: x0.5 head")
    trainer(bert(), tmp_path, [callback], learning_rate=3e-3)
    lines = str(callback.dry_run()).splitlines()
    assert lines[6].split()[-2:] == ["tune", "0.003"]
    assert "tune 0.0015" in str(callback.dry_run())


class Reader(torch.nn.Module):
    """Reads two inputs whose shapes nobody can guess."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Bilinear(3, 5, 8)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()) for _ in range(4)
        )
        self.head = torch.nn.Linear(8, 2)

    def forward(self, one, other, labels=None):
        x = self.stem(one, other)
        for block in self.blocks:
            x = x + block(x).relu()
        logits = self.head(x)
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def pairs_to_read(n=16):
    generator = torch.Generator().manual_seed(0)
    return [
        {"one": torch.randn(3, generator=generator), "other": torch.randn(5, generator=generator), "labels": i % 2}
        for i in range(n)
    ]


POSTPONED = Policy("reinit: head; lr: decay 0.5", [("0", "freeze: ..50%"), ("5 steps", "freeze: stem")])


@pytest.mark.slow
def test_where_there_is_no_dummy_input_the_first_samples_of_the_trainer_serve(tmp_path):
    """The same training, bit for bit, as with an example."""
    states, example = [], {key: torch.ones(1, n) for key, n in (("one", 3), ("other", 5))}
    for given in (None, example):
        model = Reader()
        callback = PolicyCallback(POSTPONED, example=given)
        training = trainer(model, tmp_path, [callback], pairs_to_read(), num_train_epochs=2, weight_decay=0.1)
        if given is None:
            before = state(model)
            training.evaluate()
            assert not moved(model, before)
            with pytest.raises(InputError, match="does not tell what it reads"):
                callback.dry_run()
        training.train()
        assert callback.applied.phase == 1
        assert "reinit 0.01" in str(callback.dry_run())
        states.append(state(model))
    assert not {name for name in moved(model, before) if name.startswith("stem")}
    assert {"blocks.1.0.weight", "head.weight"} <= moved(model, before)
    assert largest_difference(*states) == 0.0


@pytest.mark.slow
def test_a_postponed_policy_resumes_and_keeps_its_rules(tmp_path):
    options = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3}
    straight = trainer(Reader(), tmp_path, [PolicyCallback(POSTPONED)], pairs_to_read(), **options)
    straight.train()
    resumed = trainer(Reader(), tmp_path / "resumed", [PolicyCallback(POSTPONED)], pairs_to_read(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert largest_difference(state(straight.model), state(resumed.model)) == 0.0
    other = trainer(Reader(), tmp_path / "other", [PolicyCallback("freeze: stem")], pairs_to_read(), **options)
    with pytest.raises(InputError, match="trained under another policy"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    callback = PolicyCallback("freeze: stem")
    trainer(Reader(), tmp_path, [callback], pairs_to_read())
    with pytest.raises(InputError, match="belongs to another Trainer"):
        trainer(Reader(), tmp_path, [callback], pairs_to_read())
    with pytest.raises(InputError, match="a Trainer takes one PolicyCallback"):
        trainer(Reader(), tmp_path, [PolicyCallback("freeze: stem"), PolicyCallback("freeze: 0")], pairs_to_read())
    training = trainer(Reader(), tmp_path)
    training.args.fsdp = "config"  # where parameters are in pieces by then
    with pytest.raises(InputError, match=r"as example=\.\.\."):
        PolicyCallback("freeze: stem").on_init_end(
            training.args, training.state, training.control, model=training.model
        )


class StreamOfPairs(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(pairs_to_read())


def test_a_stream_needs_an_example(tmp_path):
    training = trainer(Reader(), tmp_path, [PolicyCallback("freeze: stem")], StreamOfPairs(), max_steps=1)
    with pytest.raises(InputError, match=r"as example=\.\.\."):
        training.train()
