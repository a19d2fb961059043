"""One cluster for all tests that need one: it takes longer to start than they take to run."""

from pathlib import Path

import pytest
from ray_nodes import two_nodes


@pytest.fixture(scope="session")
def cluster():
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'hf-tl[ray]'")
    here = Path(__file__).parent
    with two_nodes(here, here.parent / "strategies") as running:
        yield running
