"""Every strategy learns from the samples that it is given alone, chooses by others, and ends on time."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from one_comparison import CLASSES, Guess

from hf_tl.analysis import Footprint
from hf_tl.errors import InputError
from hf_tl.strategies import Effort, Transfer, find_strategy
from hf_tl.strategies.compare import run_once
from hf_tl.strategies.draws import draw, usable_samples
from hf_tl.strategies.feature_extraction import RELATIVE_C, last_layer, linear_probe
from hf_tl.strategies.ledger import Ledger
from hf_tl.strategies.strategy import BUILT_IN


EFFORT = Effort(epochs=2, trials=2, steps=1, batch_size=9)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN)
def test_each_strategy_learns(transfer, drawn, name):
    strategy = find_strategy(name)
    assert strategy.name == name
    fitted = strategy.fit(transfer, drawn.train, drawn.validation, effort=EFFORT, seed=0)
    predicted = fitted.predict(transfer.test)
    assert predicted.shape == (18,)
    assert set(predicted.tolist()) <= {0, 1, 2}
    if name in ("last layer", "full network", "linear probe"):  # 18 samples teach random weights nothing
        assert (predicted == transfer.labels[transfer.test]).mean() > 0.5
    assert fitted.trials == 2
    assert fitted.samples_seen >= len(drawn.train)
    assert 0 <= fitted.validation <= 1
    compile(strategy.code(transfer, fitted.setting), "code", "exec")


@pytest.mark.parametrize("name", ["split", "LoRA"])  # frozen first layers kept in memory, and adapters
def test_a_training_in_bfloat16_is_near_one_in_float32(transfer, drawn, name):
    losses = []
    for bf16 in (False, True):
        seen: list[bool] = []
        handle = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda *_, seen=seen: seen.append(torch.is_autocast_enabled("cpu"))
        )
        try:
            effort = replace(EFFORT, trials=1, bf16=bf16)
            fitted = find_strategy(name).fit(transfer, drawn.train, drawn.validation, effort=effort, seed=0)
        finally:
            handle.remove()
        assert any(seen) == bf16
        logits = fitted.network.model(transfer.collator(fitted.network)([{"index": 0}])["pixel_values"]).logits
        losses.append(logits.detach())
    torch.testing.assert_close(*losses, rtol=0.2, atol=0.1)


def test_settings_of_a_probe_do_not_depend_on_the_scale_of_features():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(60, 200)), np.repeat([0, 1, 2], 20)
    features[np.arange(60), labels] += 6
    for strategy in (last_layer(), linear_probe()):
        chosen = RELATIVE_C[strategy.head][0]
        for scale in (0.01, 1, 100):
            head = strategy._head(chosen, scale * features, labels)
            assert (head.predict(scale * features) == labels).all(), (strategy.name, scale)


def test_each_share_of_the_reading_costs_the_same(transfer):
    shares = [transfer.reading_cost(n) for n in (6, 6, 12)]
    assert shares[0].wall_seconds.value == shares[1].wall_seconds.value > 0
    assert shares[2].flops.value == pytest.approx(2 * shares[0].flops.value)
    assert shares[0].samples == 6


def test_one_sample_a_class_leaves_none_to_choose_by(transfer):
    pool, _ = usable_samples(transfer.labels, n_train=transfer.n_train, groups=np.arange(len(transfer.labels)))
    one = draw(transfer.labels, pool, shots=1, seed=0)
    assert len(one.train) == 3
    assert not len(one.validation)
    fitted = find_strategy("split").fit(transfer, one.train, one.validation, effort=EFFORT, seed=0)
    assert np.isnan(fitted.validation)
    assert fitted.trials == 1


@pytest.mark.slow
def test_what_is_frozen_stays_and_what_trains_moves(transfer, drawn):
    start = transfer.network(seed=0).model.state_dict()
    moved = {}
    for name in ("split", "full fine-tuning", "from scratch"):
        fitted = find_strategy(name).fit(transfer, drawn.train, drawn.validation, effort=EFFORT, seed=0)
        state = fitted.network.model.state_dict()
        moved[name] = {key for key, value in start.items() if not torch.equal(value, state[key])}
    stem = {key for key in start if key.startswith("timm_model.conv1")}
    assert stem
    assert not stem & moved["split"]
    assert stem & moved["full fine-tuning"]
    assert moved["split"] < moved["full fine-tuning"] | {key for key in start if "num_batches" in key}


@pytest.mark.slow
def test_a_run_says_what_training_changed_by_layer(transfer, drawn, tmp_path):
    runs = {}
    for name in ("split", "last layer"):
        cost, strategy = Footprint(name), find_strategy(name)
        runs[name] = run_once(transfer, strategy, drawn, name, {}, 6, 0, EFFORT, cost)
        Ledger(tmp_path / "ledger.jsonl").append(runs[name])
    assert runs["last layer"].training_change is None
    change = Ledger(tmp_path / "ledger.jsonl").read()["split"].training_change
    assert change.relative[change.depths < 0.5].max() == 0
    assert change.relative[change.depths == 1].min() > 0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_predictions(transfer, drawn):
    fits = [
        find_strategy("full fine-tuning").fit(transfer, drawn.train, drawn.validation, effort=EFFORT, seed=1)
        for _ in range(2)
    ]
    assert (fits[0].predict(transfer.test) == fits[1].predict(transfer.test)).all()
    assert fits[0].validation == fits[1].validation


@pytest.mark.parametrize(("n", "passes"), [(12, 5), (240, 1), (239, 1), (32, 3)])
def test_few_samples_are_passed_over_until_there_are_steps_enough(n, passes):
    effort = Effort(epochs=20, steps=100, batch_size=16)
    assert effort.passes(n) == passes
    assert effort.epochs * passes * -(-n // 16) >= 100


def test_a_deadline_ends_a_training_with_what_it_has(transfer, drawn):
    effort = Effort(epochs=10_000, trials=3, patience=10_000, deadline=time.monotonic() + 2)
    start = time.monotonic()
    fitted = find_strategy("full fine-tuning").fit(transfer, drawn.train, drawn.validation, effort=effort, seed=0)
    assert time.monotonic() - start < 60
    assert "the time was over after" in fitted.stopped
    assert fitted.trials < 3
    assert fitted.predict(transfer.test).shape == (18,)


@pytest.mark.slow
def test_texts_are_learnt_too(text_folder, reviews):
    transfer = Transfer.of(str(text_folder), str(reviews))
    pool, _ = usable_samples(transfer.labels, n_train=transfer.n_train, groups=np.arange(len(transfer.labels)))
    few = draw(transfer.labels, pool, shots=4, seed=0)
    for name in ("last layer", "LoRA", "full fine-tuning"):
        fitted = find_strategy(name).fit(
            transfer, few.train, few.validation, effort=Effort(epochs=1, trials=1), seed=0
        )
        assert fitted.predict(transfer.test).shape == transfer.test.shape


def test_strategies_by_name_by_path_and_by_object():
    assert find_strategy(Guess("mine")).name == "mine"
    assert find_strategy("one_comparison:Guess").name == "guess"
    with pytest.raises(InputError, match=r"there is no strategy 'lora' among .*'LoRA'"):
        find_strategy("lora")
    with pytest.raises(InputError, match="should have a name, fit and code, got Effort"):
        find_strategy("hf_tl.strategies.strategy:Effort")
    assert CLASSES == ("cat", "dog", "owl")
