"""Every row of parity_rows against PEFT: the same names, the same values, the same gradients, the same merge.

Where nothing is rounded differently the difference is 0.0; elsewhere at most 1e-6 of the largest value. The checks
are plain functions, so that test_mutations can show that they catch what they are for.
"""

import copy
import warnings

import peft
import pytest
import torch
from lanes import lanes
from parity_rows import ROWS, Pair, Row, live_names, make_pair, peft_tensors, randomise

from hf_tl import InputError, LoraConfig, delete_adapter, merge_adapter, unmerge_adapter
from hf_tl.lora.adapted import adapter_state_dict, disable_adapters, record_of
from hf_tl.trace import first_float, forward


TOLERANCE = 8 * torch.finfo(torch.float32).eps  # of the largest value: the same sums, in another order


def output(model, batch):
    return first_float(forward(model, batch))


def frozen(model):
    """A copy in eval mode; torch chooses other kernels where weights ask for gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def equal(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float, what: str) -> None:
    assert ours.shape == theirs.shape, what
    difference = (ours - theirs).abs().max() if ours.numel() else torch.zeros(())
    largest = theirs.abs().max().clamp_min(1e-30) if ours.numel() else torch.ones(())
    assert (difference / largest).item() <= tolerance, f"{what}: {(difference / largest).item():.2g}"


def check_keys_shapes_dtypes(pair: Pair) -> None:
    theirs, ours = peft_tensors(pair), adapter_state_dict(pair.ours)
    assert sorted(ours) == sorted(theirs)
    assert {name: (t.shape, t.dtype) for name, t in ours.items()} == {
        name: (t.shape, t.dtype) for name, t in theirs.items()
    }


def check_live_names(pair: Pair) -> None:
    assert sorted(live_names(pair.ours)) == sorted(live_names(pair.peft))


def check_trainable(pair: Pair) -> None:
    ours = {name: p.numel() for name, p in live_names(pair.ours).items() if p.requires_grad}
    theirs = {name: p.numel() for name, p in live_names(pair.peft).items() if p.requires_grad}
    assert ours == theirs
    assert sum(ours.values()) == pair.peft.get_nb_trainable_parameters()[0]


def check_identity(pair: Pair) -> None:
    fresh = make_pair(pair.row)
    expected = output(frozen(fresh.base), fresh.batch)
    tolerance = 1e-6 if pair.row.config.get("use_dora") or pair.row.network == "attention" else 0.0
    equal(output(fresh.ours.eval(), fresh.batch), expected, tolerance, "a new adapter")


def check_forward(pair: Pair) -> None:
    pair.ours.eval()
    pair.peft.eval()
    equal(output(pair.ours, pair.batch), output(pair.peft, pair.batch), TOLERANCE, "forward")


def check_peft_reads_ours(pair: Pair) -> None:
    fresh = make_pair(pair.row).peft
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = peft.set_peft_model_state_dict(fresh, adapter_state_dict(pair.ours))
    assert not result.unexpected_keys
    equal(output(fresh.eval(), pair.batch), output(pair.peft.eval(), pair.batch), 0.0, "our tensors in PEFT")


def check_training_forward(pair: Pair) -> None:
    values = []
    for model in (pair.ours, pair.peft):
        torch.manual_seed(7)
        values.append(output(copy.deepcopy(model).train(), pair.batch))
    equal(*values, TOLERANCE, "training forward")


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(model).train()
    leaf = batch
    if isinstance(batch, torch.Tensor) and batch.is_floating_point():
        leaf = batch.clone().requires_grad_(True)
    torch.manual_seed(7)
    value = output(model, leaf)
    value.backward(torch.randn(value.shape, generator=torch.Generator().manual_seed(3)))
    found = {name: p.grad for name, p in live_names(model).items() if p.grad is not None}
    return found if leaf is batch else {**found, "input": leaf.grad}


def check_gradients(pair: Pair) -> None:
    ours, theirs = gradients(pair.ours, pair.batch), gradients(pair.peft, pair.batch)
    assert sorted(ours) == sorted(theirs)
    largest = max(gradient.abs().max() for gradient in theirs.values())
    for name, gradient in theirs.items():
        equal(ours[name] / largest, gradient / largest, TOLERANCE * 10 ** (name != "input"), name)


def check_merge(pair: Pair) -> None:
    ours, theirs = copy.deepcopy(pair.ours).eval(), copy.deepcopy(pair.peft).eval()
    before = output(ours, pair.batch)
    if not pair.row.merges:
        with pytest.raises(InputError, match="groups reads all input channels"):
            merge_adapter(ours)
        return
    delete_adapter(ours, merge=True)
    merged = theirs.merge_and_unload()
    equal(output(ours, pair.batch), output(merged, pair.batch), 1e-6, "merged output")
    equal(output(ours, pair.batch), before, 1e-5, "merged against unmerged")
    state = merged.state_dict()
    assert sorted(ours.state_dict()) == sorted(state)  # PEFT reorders those of attention
    for name, tensor in ours.state_dict().items():
        equal(tensor, state[name], 1e-6, f"merged {name}")


def check_unmerge(pair: Pair) -> None:
    if not pair.row.merges:
        return
    ours = copy.deepcopy(pair.ours).eval()
    state, expected = copy.deepcopy(ours.state_dict()), output(ours, pair.batch)
    assert merge_adapter(ours).layers == len(record_of(ours).layers)
    unmerge_adapter(ours)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert torch.equal(output(ours, pair.batch), expected)


def check_disabled(pair: Pair) -> None:
    base = output(frozen(pair.base), pair.batch)
    with disable_adapters(pair.ours.eval()):
        equal(output(pair.ours, pair.batch), base, 0.0, "disabled")


def check_removed(pair: Pair) -> None:
    ours = delete_adapter(copy.deepcopy(pair.ours))
    state = pair.base.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())
    assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in pair.base.parameters()]


def check_config(pair: Pair) -> None:
    """PEFT, given our resolved config, adapts the same modules."""
    ours = record_of(pair.ours).configs["default"]
    again = dict(pair.row.config)
    again |= {
        "target_modules": ours.target_modules,
        "modules_to_save": ours.modules_to_save and [*ours.modules_to_save],
    }
    again |= {"layers_to_transform": ours.layers_to_transform, "layers_pattern": ours.layers_pattern}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(copy.deepcopy(pair.base), peft.LoraConfig(**again))
    assert sorted(live_names(theirs)) == sorted(live_names(pair.ours))


def check_half_precision(pair: Pair) -> None:
    """A bfloat16 network with float32 adapters: half precision's own rounding apart, the same output."""
    if pair.row.network in ("conv1d", "conv3d", "t5") or "attention" in pair.row.network:
        return  # PEFT's own adapters do not run, or round twice, there
    row = pair.row
    base, batch = copy.deepcopy(pair.base).bfloat16(), pair.batch
    if isinstance(batch, torch.Tensor):
        batch = batch.bfloat16() if batch.is_floating_point() else batch
    else:
        batch = {name: t.bfloat16() if t.is_floating_point() else t for name, t in batch.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**row.config))
    from hf_tl import add_lora

    config = LoraConfig(**{"modules_to_save": (), **row.config})
    ours = add_lora(base, config, running_statistics="ignore")
    half = Pair(row, base, batch, theirs, ours)
    found, wanted = adapter_state_dict(ours), peft_tensors(half)
    assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in wanted.items()}
    kinds = {t.dtype for name, t in found.items() if t.is_floating_point() and not name.endswith(".bias")}
    assert kinds == {torch.float32}  # what trains; PEFT leaves modules_to_save in half precision
    randomise(half)
    equal(output(ours.eval(), batch).float(), output(theirs.eval(), batch).float(), 2e-2, "bfloat16")


CHECKS = [
    check_keys_shapes_dtypes,
    check_live_names,
    check_trainable,
    check_identity,
    check_forward,
    check_peft_reads_ours,
    check_training_forward,
    check_gradients,
    check_merge,
    check_unmerge,
    check_disabled,
    check_removed,
    check_config,
    check_half_precision,
]


LARGE = ("conv3d", "t5", "resnet", "convnext")
FAST = [*{row.network: row for row in reversed(ROWS) if row.network not in LARGE}.values()]  # the first of each


@pytest.fixture(scope="module", params=lanes(ROWS, fast=lambda row: row in FAST), ids=lambda row: row.name)
def pair(request) -> Pair:
    made = make_pair(request.param)
    randomise(made)
    return made


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_parity(pair, check):
    check(pair)


def test_the_matrix_is_as_large_as_claimed():
    assert len(ROWS) >= 60
    assert len(CHECKS) >= 11
    assert len({row.name for row in ROWS}) == len(ROWS)
    networks = {"bert", "vit", "gpt2", "llama", "t5", "resnet", "convnext", "timm-vit"}
    assert networks <= {row.network for row in ROWS}
    assert isinstance(ROWS[0], Row)
