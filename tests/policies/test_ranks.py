"""Two processes under DDP stay equal, bit for bit, through every phase."""

import json
from pathlib import Path

import pytest


PHASES = {"gradual": 4, "lp_ft": 2, "plateau": 2, "refreeze": 3}


@pytest.fixture(scope="module")
def found(tmp_path_factory, processes):
    """What one pair of processes found for all policies: starting it is what takes the time."""
    folder = tmp_path_factory.mktemp("ranks")
    processes.succeed(Path(__file__).parent / "ranks.py", folder, ranks=2)
    return json.loads((folder / "rows.json").read_text())


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("name", PHASES)
def test_ranks_stay_equal(name, found):
    assert found[name]["world"] == 2
    rows = found[name]["rows"]
    assert len(rows) == 8
    assert len({phase for phase, _ in rows}) == PHASES[name]
    assert max(difference for _, difference in rows) == 0.0
