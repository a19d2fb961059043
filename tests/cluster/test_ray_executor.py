"""Comparing on a cluster of two Ray nodes: the ledger of a straight run, whoever is killed on the way."""

import json
import sys
import threading
from types import SimpleNamespace

import pytest
from nodes import Counted
from one_comparison import Guess, task
from ray_nodes import losing_a_node

from hf_tl import InputError, RayExecutor
from hf_tl.cluster import ray_data
from hf_tl.strategies import Effort, compare


pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]
OPTIONS = {
    "shots": (2,),
    "seeds": 2,
    "progress": False,
    "image_size": 32,
    "effort": Effort(epochs=1, trials=1, steps=2),
}


def said(folder):
    """What a ledger says of each run, without what differs from time to time."""
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    found = {line["key"]: {key: value for key, value in line.items() if key != "footprint"} for line in lines}
    assert len(found) == len(lines)
    return found


def test_a_node_and_an_actor_are_killed_on_the_way(cluster, timm_folder, tmp_path):
    strategies = ("last layer", "full fine-tuning", Counted("counted", 0.4))
    compare(
        str(timm_folder), task(), strategies=(*strategies[:2], Guess("counted", 0.4)), out=tmp_path / "a", **OPTIONS
    )
    with losing_a_node(cluster, (tmp_path / "b" / "begun").exists):
        found = compare(
            str(timm_folder),
            task(),
            strategies=strategies,
            out=tmp_path / "b",
            executor=RayExecutor(actors=2),
            **OPTIONS,
        )
    assert len(found.runs) == found.planned == 3 * 2
    straight, on_ray = ({(r["strategy"], r["shots"], r["seed"]): r for r in said(tmp_path / f).values()} for f in "ab")
    for key, run in straight.items():
        for name in ("train", "validation", "setting", "predicted", "test_accuracy", "samples_seen", "change"):
            assert on_ray[key][name] == run[name], (key, name)
    assert len(list((tmp_path / "b" / "begun").iterdir())) > 1 + 2  # some were begun again


def test_results_and_errors_come_back(cluster):
    assert list(RayExecutor().map(str, [])) == []

    def halve(number):
        if number % 2:
            raise InputError(f"{number} is odd")
        return number / 2

    assert sorted(RayExecutor(actors=1).map(halve, [6, 2, 4])) == [1, 2, 3]
    with pytest.raises(InputError, match=r"^3 is odd$"):
        list(RayExecutor(actors=1).map(halve, [2, 3]))


def test_what_no_machine_has_room_for_is_refused(cluster):
    for options in ({"num_gpus": 1}, {"num_cpus": 64}):
        with pytest.raises(InputError, match=r"which no machine of the cluster has: they have 2 CPUs and 0 GPUs; ask"):
            list(RayExecutor(**options).map(str, [1, 2]))
    with pytest.raises(InputError, match="something that pickle can hold: TypeError: cannot pickle"):
        list(RayExecutor().map(str, [threading.Lock()]))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_nobody_answers(monkeypatch, address):
    ray = pytest.importorskip("ray", reason="Ray is an extra: pip install 'hf-tl[ray]'")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(InputError, match=rf"no Ray cluster answers at '{address}': .*; start one with `ray start"):
        list(RayExecutor(address=address).map(str, [1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actors": 0}, r"actors should be 1 or more, or \(least, most\) of them, got 0"),
        ({"actors": (3, 1)}, r"got \(3, 1\)"),
        ({"num_cpus": -1}, "part of a CPU or GPU or more, got num_cpus=-1 and num_gpus=0.0"),
    ],
)
def test_options(options, message):
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'hf-tl[ray]'")
    with pytest.raises(InputError, match=message):
        RayExecutor(**options)


def test_runs_with_a_gpu_are_handed_out_one_at_a_time(monkeypatch):
    """Ray refuses blocks of any size where GPUs are asked for; there is none here."""
    data = pytest.importorskip("ray.data", reason="Ray is an extra: pip install 'hf-tl[ray]'")
    asked = {}

    class Dataset:
        context = SimpleNamespace()

        def map_batches(self, make, **options):
            asked.update(options)
            return self

    monkeypatch.setattr(ray_data, "_check_room", lambda **_: None)
    for num_gpus, size in ((0, None), (1, 32)):
        ray_data.map_blocks(
            Dataset(), str, (), batch_size=32, whole_blocks=True, actors=1, num_cpus=1, num_gpus=num_gpus
        )
        assert asked["batch_size"] == size
    assert data.ActorPoolStrategy is type(asked["compute"])


def test_without_ray_a_sentence_says_how_to_install_it(monkeypatch):
    for name in ("ray", "ray.data"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"this runs on Ray: pip install 'hf-tl\[ray\]'"):
        RayExecutor()
