"""Comparing on a cluster of two Ray nodes: the ledger of a straight run, whoever is killed on the way."""

import json
import sys

import pytest
from nodes import Counted
from one_comparison import Guess, task
from ray_nodes import losing_a_node

from hf_tl import InputError, RayExecutor
from hf_tl.strategies import Effort, compare


pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]
OPTIONS = {
    "shots": (1, 2),
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
    assert len(found.runs) == found.planned == 3 * 2 * 2
    straight, on_ray = ({(r["strategy"], r["shots"], r["seed"]): r for r in said(tmp_path / f).values()} for f in "ab")
    for key, run in straight.items():
        for name in ("train", "validation", "setting", "predicted", "test_accuracy", "samples_seen", "change"):
            assert on_ray[key][name] == run[name], (key, name)
    assert len(list((tmp_path / "b" / "begun").iterdir())) > 1 + 4  # some were begun again


def test_results_and_errors_come_back(cluster):
    assert list(RayExecutor().map(str, [])) == []

    def halve(number):
        if number % 2:
            raise InputError(f"{number} is odd")
        return number / 2

    assert sorted(RayExecutor(actors=1).map(halve, [6, 2, 4])) == [1, 2, 3]
    with pytest.raises(InputError, match=r"^3 is odd$"):
        list(RayExecutor(actors=1).map(halve, [2, 3]))


def test_without_ray_a_sentence_says_how_to_install_it(monkeypatch):
    for name in ("ray", "ray.data"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"this runs on Ray: pip install 'hf-tl\[ray\]'"):
        RayExecutor()
