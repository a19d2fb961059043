"""Two processes under DDP stay equal, bit for bit, through every phase."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


HERE = Path(__file__).parent
PHASES = {"gradual": 4, "lp_ft": 2, "plateau": 2, "refreeze": 3}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one pair of processes found for all policies: starting it is what takes the time."""
    folder = tmp_path_factory.mktemp("ranks")
    paths = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    done = subprocess.run(
        [*command, str(HERE / "ranks.py"), str(folder)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
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
