"""Ray Tune trains the trials of a run on the cluster: each is the training of its rate, and all are paid for."""

from dataclasses import replace

import numpy as np
import pytest
from one_comparison import task

from hf_tl.analysis import Footprint
from hf_tl.strategies import Effort, Transfer, find_strategy
from hf_tl.strategies.compare import run_once
from hf_tl.strategies.draws import draw, usable_samples
from hf_tl.strategies.reporting import Reporting
from hf_tl.strategies.search import WITHIN


pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]


def test_trials_on_the_cluster(cluster, timm_folder, tmp_path, monkeypatch):
    pytest.importorskip("ray.tune", reason="Ray is an extra: pip install 'hf-tl[ray]'")
    (tmp_path / "network").symlink_to(timm_folder)
    monkeypatch.chdir(tmp_path)  # a name that the workers must take for the same
    transfer = Transfer.of("network", task(), image_size=32)
    pool, _ = usable_samples(transfer.labels, n_train=transfer.n_train, groups=np.arange(len(transfer.labels)))
    drawn = draw(transfer.labels, pool, shots=8, seed=0)
    runs = {}
    for search, trials in (("grid", 1), ("ray", 2)):
        effort = Effort(epochs=1, trials=trials, steps=1, batch_size=9, search=search)
        if search == "ray":
            effort = replace(
                effort, reporting=Reporting.of("tensorboard", folder=tmp_path).named("a", model="m", source="s")
            )
        cost = Footprint(search, country="ESP", count_flops=True)
        strategy = find_strategy("full fine-tuning")
        runs[search] = run_once(transfer, strategy, drawn, search, {}, 8, 0, effort, cost)
    found, alone = runs["ray"], runs["grid"]
    reported = {folder.name for folder in (tmp_path / "tensorboard").iterdir()}
    assert len(reported) == 2  # by the workers, of one rate here as well
    assert "a, learning rate 0.001" in reported
    assert found.trials == 3  # the best rate is trained once more, here
    assert found.samples_seen == 3 * alone.samples_seen
    assert found.footprint["flops"]["value"] > 2.5 * alone.footprint["flops"]["value"]
    assert found.footprint["co2_grams"]["value"] > 0
    rate = float(found.setting.removeprefix("learning rate "))
    assert 1e-3 / WITHIN <= rate <= 1e-3 * WITHIN
    if rate == 1e-3:
        assert found.predicted == alone.predicted
    assert found.validation_accuracy >= alone.validation_accuracy
