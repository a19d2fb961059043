"""The script that advice gives runs as it stands, and leaves a classifier that predicts; so does what was fitted."""

import re

import numpy as np
import pytest
from one_comparison import Guess, task

from hf_tl import Classifier
from hf_tl.errors import InputError
from hf_tl.strategies import Effort, Transfer, compare, find_strategy
from hf_tl.strategies.strategy import BUILT_IN


EFFORT = Effort(epochs=1, trials=1, steps=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("full network", "C 1"),
        ("linear probe", "C 1"),
        ("split", "learning rate 0.001"),
        ("measured cut", "learning rate 0.001, freeze: ..0; reinit: head"),
        ("LP-FT", "learning rate 0.001"),
        ("LoRA", "learning rate 0.001"),
    ],
)
def test_scripts_run_save_and_predict(name, setting, timm_folder, image_folder, monkeypatch, capsys):
    monkeypatch.chdir(image_folder.parent)
    transfer = Transfer.of(str(timm_folder), image_folder.name, image_size=32)
    code = find_strategy(name).code(transfer, setting)
    code = re.sub(r"num_train_epochs=\d+", "max_steps=2", code)
    exec(compile(code, "advice.py", "exec"), {})
    found = Classifier.from_pretrained("classifier")
    assert found.predict([transfer.task.test[0]])[0] in transfer.classes
    assert "accuracy" in found.record.scores
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["last layer", "full fine-tuning", "LoRA"])
def test_what_was_fitted_is_a_classifier(name, timm_folder, tmp_path):
    assert name in BUILT_IN
    transfer = Transfer.of(str(timm_folder), task(), image_size=32)
    train, validation = np.arange(0, 24, 2), np.arange(1, 24, 4)
    fitted = find_strategy(name).fit(transfer, train, validation, effort=EFFORT, seed=0)
    assert fitted.to_classifier is not None
    made = fitted.to_classifier()
    made.save_pretrained(tmp_path / "made")
    again = Classifier.from_pretrained(tmp_path / "made")
    numbers = {name: number for number, name in enumerate(transfer.classes)}
    inputs = [transfer.samples[int(i)] for i in transfer.test]
    for classifier in (made, again):
        assert [numbers[said] for said in classifier.predict(inputs)] == fitted.predict(transfer.test).tolist()
    assert again.record.method


def test_the_best_of_a_comparison_is_a_classifier(timm_folder, tmp_path):
    both = ("last layer", Guess("poor", 0.1))
    options = {"shots": (2, 4), "seeds": 2, "image_size": 32, "progress": False}
    found = compare(str(timm_folder), task(), strategies=both, out=tmp_path / "runs", effort=EFFORT, **options)
    assert found.best == "last layer"
    made = found.to_classifier()
    made.save_pretrained(tmp_path / "made")
    assert Classifier.from_pretrained(tmp_path / "made").record.scores["accuracy"] > 0.5
    with pytest.raises(InputError, match="'poor' makes no classifier"):
        found.to_classifier("poor")
    with pytest.raises(InputError, match=r"one of \['last layer', 'poor'\], got 'LoRA'"):
        found.to_classifier("LoRA")
