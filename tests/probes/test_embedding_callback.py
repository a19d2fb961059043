"""The embedding of a network while it is trained."""

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from one_training import Model, accuracies, prepare, rows, train
from sklearn.neighbors import KNeighborsClassifier

from hf_tl import InputError, Samples
from hf_tl.probes.embedding_callback import EmbeddingCallback


@pytest.mark.parametrize("log", [False, True])
def test_accuracies_are_logged_every_so_many_steps_and_at_the_end(tmp_path, log):
    _, history = train(tmp_path, log=log)
    found = [entry for entry in history if "embedding/svm" in entry]
    assert [entry["step"] for entry in found] == [3, 6, 7]
    assert [entry["step"] for entry in history if "loss" in entry] == [2, 4, 6]  # none is lost
    assert all(entry["embedding/svm"] > 0.9 and entry["embedding/knn"] > 0.9 for entry in found)


def test_training_is_as_if_nothing_had_happened(tmp_path):
    with_it, _ = train(tmp_path / "a")
    without, _ = train(tmp_path / "b", callback=False)
    for one, other in zip(with_it.parameters(), without.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_log_what_one_logs_and_train_as_if_nothing_had_happened(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).parent / "one_training.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": "."}
    with subprocess.Popen([*launch, script, tmp_path], stderr=subprocess.PIPE, text=True, env=environment) as both:
        try:
            said = both.communicate(timeout=200)[1]
        finally:
            both.terminate()  # torchrun ends its processes with it
    assert both.returncode == 0, said[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for rank in ranks:
        assert rank["world"] == 2
        for key in ("weights", "flags", "drawn"):
            assert rank["with"][key] == rank["without"][key]
    assert ranks[0]["with"]["weights"] == ranks[1]["with"]["weights"]
    assert ranks[1]["logged"] == []  # process 0 alone
    expected = accuracies(train(tmp_path / "alone", log=True, dropout=0.0, apart=0.8)[1])
    assert ranks[0]["logged"] == expected
    assert [step for step, *_ in expected] == [3, 6, 7]
    assert len({svm for _, svm, _ in expected} | {knn for *_, knn in expected}) > 1  # so that equality says something


def test_flags_and_random_numbers_are_restored():
    model = Model().train()
    model.body[2].eval()
    flags = [module.training for module in model.modules()]
    callback = EmbeddingCallback(rows(8, 1), rows(8, 2), prepare=prepare, heads={"near": KNeighborsClassifier(1)})
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    assert set(callback.measure(model)) == {"embedding/near"}
    assert flags == [module.training for module in model.modules()]
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], np.random.get_state()[1])


def test_wrong_arguments_end_in_a_sentence():
    bare = Samples([{"x": torch.zeros(4)}], "x", name="val")
    with pytest.raises(InputError, match="val has no labels; heads are fitted"):
        EmbeddingCallback(rows(8, 1), bare, prepare=prepare)
    with pytest.raises(InputError, match="eval_steps must be at least 1, got 0"):
        EmbeddingCallback(rows(8, 1), rows(8, 2), prepare=prepare, eval_steps=0)
