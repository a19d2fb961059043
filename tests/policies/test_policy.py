"""What a policy says about each layer and phase, and how a wrong one is answered."""

import copy
from itertools import pairwise

import pytest
import timm
import torch
from torch import nn
from zoo import ZOO

from hf_tl import InputError, Policy, list_layers
from hf_tl.policies.phases import Progress


def network(name):
    return next(specimen for specimen in ZOO if specimen.name == name).model()


@pytest.fixture(scope="module")
def vit():
    return timm.create_model("vit_tiny_patch16_224", depth=6, embed_dim=12, img_size=32, num_classes=5)


@pytest.fixture(scope="module")
def layers(vit):
    return list_layers(vit)


@pytest.fixture(scope="module")
def clip():
    return list_layers(network("CLIPModel"))


@pytest.fixture(scope="module")
def gpt2():
    return list_layers(network("GPT2LMHeadModel"))


def actions(layers, policy, phase=0):
    return "".join("FTR"[setting.trains + setting.reinit] for setting in policy.plans(layers)[phase].settings)


@pytest.mark.parametrize(
    ("text", "expected"),  # stem, six blocks, norm, head
    [
        ("freeze: ..50%; tune: 50%..-2; reinit: -2.., head; lr: decay 0.8", "FFFFTRRRR"),
        ("freeze: ..50%", "FFFFTTTTT"),
        ("tune: head", "FFFFFFFFT"),
        ("tune: -1.., head", "FFFFFFTTT"),
        ("freeze: all; tune: 2", "FFFTFFFFF"),
        ("tune: 2; freeze: all; tune: 1, head", "FFTFFFFFT"),
        ("reinit: head", "TTTTTTTTR"),
        ("reinit: head; tune: -1", "FFFFFFTFR"),
        ("freeze: /blocks\\.[0-2]$/;", "TFFFTTTTT"),
    ],
)
def test_actions(layers, text, expected):
    assert actions(layers, Policy(text)) == expected


def test_rates(layers):
    rates = [setting.rate for setting in Policy("lr: decay 0.5; lr: x10 head").plans(layers)[0].settings]
    assert rates == [0.5**7, 0.5**6, 0.5**5, 0.5**4, 0.5**3, 0.5**2, 0.5, 1, 10]


def test_switches(layers):
    plan = Policy("freeze: ..50%; norm: train 0; dropout: on stem; norm: eval head").plans(layers)[0]
    assert [setting.norm for setting in plan.settings][:5] == ["eval", "train", "eval", "eval", "train"]
    assert plan.settings[-1].norm == "eval"
    assert [setting.dropout for setting in plan.settings][:5] == ["on", "off", "off", "off", "on"]


def test_gradual_opens_one_block_after_the_other(layers):
    policy = Policy.gradual(every=2, unit="step")
    assert [actions(layers, policy, i) for i in (0, 1, 6, 7)] == ["FFFFFFFTT", "FFFFFFTTT", "FTTTTTTTT", "TTTTTTTTT"]
    for step in range(20):
        plan = policy.plan(layers, Progress(step=step))
        assert sum(setting.trains for setting in plan.settings) == min(2 + step // 2, 9)


def test_gradual_opens_the_last_tower_first():
    t5 = list_layers(network("T5ForConditionalGeneration"))
    plans = Policy.gradual().plans(t5)
    counts = [[plan.tunes(layer) for layer in t5 if layer.kind == "block"] for plan in plans]
    assert [sum(count) for count in counts] == [0, 1, 2, 3, 4, 5, 5]
    assert counts[2] == [False, False, False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("specimen", [s for s in ZOO if len(s.blocks) < 3], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_gradual_holds_for(specimen):
    layers = list_layers(specimen.model())
    plans = Policy.gradual().plans(layers)
    trained = [set(plan.trained) for plan in plans]
    assert all(earlier <= later for earlier, later in pairwise(trained))
    assert plans[-1].n_trainable == sum(layer.n_trainable for layer in layers)  # fixed position embeddings stay so


def test_constants_of_a_network_are_not_tuned():
    whisper = network("WhisperForConditionalGeneration")
    positions = whisper.model.encoder.embed_positions.weight
    assert not positions.requires_grad
    Policy("tune: all").apply(whisper)
    assert not positions.requires_grad
    assert whisper.model.encoder.conv1.weight.requires_grad
    whisper.requires_grad_(False)  # what somebody froze as a whole is tuned where the policy says so
    Policy("tune: head").apply(whisper)
    assert whisper.proj_out.weight.requires_grad


def test_constructors(layers):
    assert actions(layers, Policy.top_k(2)) == "FFFFFTTTT"
    assert actions(layers, Policy.top_k(0)) == "FFFFFFFTT"
    assert actions(layers, Policy.surgical("0")) == "FTFFFFFFF"
    probe = Policy.lp_ft(probe="10 steps", rate=0.1)
    assert [actions(layers, probe, i) for i in (0, 1)] == ["FFFFFFFFT", "TTTTTTTTT"]
    assert [plan.settings[-1].rate for plan in probe.plans(layers)] == [1, 0.1]


def test_policies_add_up(layers):
    both = Policy.gradual(every=1) + Policy("lr: decay 0.5", l2_sp=0.1)
    assert both.l2_sp == 0.1
    assert both.plans(layers)[-1].settings[0].rate == 0.5**7
    with pytest.raises(InputError, match="at most one"):
        Policy.gradual() + Policy.lp_ft(probe="1 epoch")


def test_a_plateau_is_read_from_what_was_logged(layers):
    policy = Policy(phases=[("0", "tune: head"), ("plateau eval_loss 2", "tune: all"), ("plateau eval_acc 1", "")])
    losses = [1.0, 0.8, 0.9, 0.85, 0.5, 0.9]
    history = [{"step": 10 * (i + 1), "eval_loss": loss, "eval_acc": -loss} for i, loss in enumerate(losses)]
    phases = [policy.plan(layers, Progress(history=history[:n])) for n in range(7)]
    tuned = [plan.n_trainable == layers.n_parameters for plan in phases]
    assert tuned == [False, False, False, False, True, True, True]
    wrong = [{"step": 5, "eval_f1": 0.5, "eval_runtime": 1}]
    with pytest.raises(InputError, match=r"waits for 'eval_loss'.*they report eval_f1, eval_runtime"):
        policy.plan(layers, Progress(history=wrong))


def test_epochs_then_a_plateau_counts_evaluations_after_the_epoch(layers):
    policy = Policy(phases=[("0", "tune: head"), ("1 epoch", "tune: -1"), ("plateau eval_loss 1", "tune: all")])
    history = [{"step": s, "epoch": s / 10, "eval_loss": float(s)} for s in (5, 10, 15, 20)]
    names = []
    for s in (5, 10, 15, 20):
        seen = [entry for entry in history if entry["step"] <= s]
        names.append(policy.plan(layers, Progress(step=s, epoch=s / 10, history=seen)).lowest.name)
    assert names == ["head", "blocks.5", "blocks.5", "stem"]


@pytest.mark.slow
def test_dry_run(vit, tmp_path):
    before = {name: (value.clone(), value.requires_grad) for name, value in vit.named_parameters()}
    policy = Policy("reinit: head", [("0", "freeze: ..3"), ("1 epoch", "freeze: 1, 2; lr: x0.5 head")])
    run = policy.dry_run(vit, lr=1e-3)
    for name, value in vit.named_parameters():
        assert torch.equal(value, before[name][0])
        assert value.requires_grad == before[name][1]
    lines = str(run).splitlines()
    assert lines[0].split() == ["layer", "name", "parameters", "from", "0", "from", "1", "epoch"]
    assert lines[-1].startswith("warning: 'stem' trains below 2 frozen layers ('blocks.1' to 'blocks.2')")
    assert "reinit 0.0005" in lines[10]
    assert "backward stops at 'blocks.3'" in lines[11]
    run.plot(tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 5000
    with pytest.raises(InputError, match=r"\.png, \.svg or \.pdf"):
        run.plot(tmp_path / "grid.gif")


def test_dry_run_of_many_phases_tells_the_changes(vit):
    lines = str(Policy.gradual(text="lr: decay 0.5").dry_run(vit)).splitlines()
    assert lines[0].split() == ["layer", "name", "parameters", "phase", "by", "phase"]
    assert lines[2].endswith("freeze, from 7 epochs tune 0.00781")
    assert lines[8].endswith("freeze, from 1 epoch tune 0.5")
    assert lines[10].split()[-2:] == ["tune", "1"]
    assert len([line for line in lines if "parameters train" in line]) == 8


WRONG = [
    ("frezze: 1", r"no action 'frezze'; write one of freeze, tune, .*the closest are 'freeze'"),
    ("freeze ..50%", r"colon is missing after 'freeze'; write 'freeze: \.\.\.'"),
    ("; : 1", r"no action ''; write freeze, tune"),
    ("freeze: 1,; tune: 2", r"a layer is missing; write all, stem"),
    ("tune: 0; freeze: heda", r"names no layer.*the closest are 'head'"),
    ("freeze: 6", r"no block 6.*the blocks are 0 to 5, or -6 to -1"),
    ("freeze: ..-9", r"write -6 to 6, or a share"),
    ("freeze: 3..2", r"range is empty.*0 to 5"),
    ("freeze: ..150%", r"no share of the blocks.*0% to 100%"),
    ("freeze: /(/", r"regular expression stands between two slashes"),
    ("lr: fast", r"lr takes 'decay 0.8', or a factor"),
    ("lr: decay -1", r"'-1' is no rate; write a number above 0"),
    ("lr: decay 0.8 head", r"decay is about all layers"),
    ("norm: off", r"norm takes 'eval' or 'train', then layers, got 'off'"),
    ("dropout: 0", r"dropout takes 'off' or 'on'"),
    ("freeze: all", r"nothing trains; leave something to tune, one of 'stem', 'blocks.0'"),
    ("freeze: -1..; reinit: -1", r"'blocks.5' is both frozen and reinitialised.*leave it out of 'freeze'"),
    ("", r"the policy says nothing; write"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_wrong(layers, text, message):
    with pytest.raises(InputError, match=message) as caught:
        Policy(text).plans(layers)
    lines = str(caught.value).splitlines()
    if len(lines) > 1:  # the error points into the policy
        assert lines[1] == f"  {text}"
        assert set(lines[2].strip()) == {"^"}


def test_the_pointer_stands_under_the_mistake(layers):
    with pytest.raises(InputError) as caught:
        Policy("tune: 0; freeze: stem, heda; lr: decay 0.8").plans(layers)
    _, text, pointer = str(caught.value).splitlines()
    assert text[pointer.index("^") : pointer.rindex("^") + 1] == "heda"


def test_wrong_phases(layers):
    for phases, message in [
        ([("1 epoch", "tune: all")], "first phase should begin at '0', got '1 epoch'"),
        ([("0", "tune: 0"), ("2 steps", ""), ("2 steps", "")], "'2 steps' comes after '2 steps'"),
        ([("0", "tune: 0"), ("0", "")], "'0' comes after '0'"),
        ([("0", "tune: 0"), ("1 step", "reinit: head")], "'1 step' reinitialises, which happens once"),
        ([("0", "tune: 0"), ("1 step", "freeze: all")], "nothing trains from '1 step' on"),
    ]:
        with pytest.raises(InputError, match=message):
            Policy(phases=phases).plans(layers)
    with pytest.raises(InputError, match="'2 epochs', '100 steps' or 'plateau eval_loss 2', got 'later'"):
        Policy(phases=[("0", ""), ("later", "tune: all")])
    with pytest.raises(InputError, match=r"phases should be pairs like \('2 epochs', 'tune: all'\), got \['0'\]"):
        Policy(phases=["0"])
    with pytest.raises(InputError, match="both frozen and reinitialised"):
        Policy("reinit: 0", [("0", "tune: 1"), ("1 step", "tune: head")]).plans(layers)


def test_two_towers(clip):
    with pytest.raises(InputError, match=r"2 towers, say which one.*vision_model\.0 or text_model\.0"):
        Policy("freeze: 0").plans(clip)
    with pytest.raises(InputError, match="top_k is for one tower"):
        Policy.top_k(1).plans(clip)
    plan = Policy("freeze: vision_model").plans(clip)[0]
    assert {layer.tower for layer in clip if not plan.tunes(layer)} == {"vision_model"}


def test_each_tower_has_its_share(clip, layers):
    frozen = [layer.name for layer in clip if not Policy("freeze: each ..50%").plans(clip)[0].tunes(layer)]
    one_by_one = Policy("freeze: vision_model...50%, text_model...50%").plans(clip)[0]
    assert frozen == [layer.name for layer in clip if not one_by_one.tunes(layer)]
    assert actions(layers, Policy("freeze: each ..50%")) == actions(layers, Policy("freeze: ..50%"))
    with pytest.raises(InputError, match=r"or 'each 0'"):
        Policy("freeze: 0").plans(clip)
    with pytest.raises(InputError, match="'each' takes blocks, a range or a kind of layer: 'each blocks'"):
        Policy("freeze: each blocks").plans(layers)


def test_a_network_in_a_wrapper_is_given_the_policy(vit):
    def frozen(wrap):
        model = copy.deepcopy(vit)
        Policy("freeze: ..50%").apply(wrap(model))
        return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}

    plain = frozen(lambda model: model)
    assert plain
    for wrap in (
        nn.DataParallel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    ):
        assert frozen(wrap) == plain


def test_tied_weights(gpt2):
    with pytest.raises(
        InputError, match=r"'stem' is frozen and 'head' is tuned, but they share 'transformer\.wte\.weight'"
    ):
        Policy("freeze: stem; tune: head").plans(gpt2)
    with pytest.raises(InputError, match=r"'head' is reinitialised and shares .* with 'stem'; name both or neither"):
        Policy("reinit: head").plans(gpt2)
    assert not Policy("freeze: ..2").plans(gpt2)[0].tunes(gpt2[0])
    assert Policy("tune: head").plans(gpt2)[0].tunes(gpt2[0])


def test_other_wrong_values():
    for make, message in [
        (lambda: Policy("tune: 0", l2_sp=-1), "l2_sp should be at least 0, got -1"),
        (lambda: Policy.gradual(unit="week"), "'epoch' or 'step', got 'week'"),
        (lambda: Policy.gradual(every=0), "at least 1, got 0"),
        (lambda: Policy.top_k(-1), "at least 0 blocks, got -1"),
        (lambda: Policy("tune: 0", seed=1) + Policy("tune: 1", seed=2), "seeds 1 and 2"),
    ]:
        with pytest.raises(InputError, match=message):
            make()
