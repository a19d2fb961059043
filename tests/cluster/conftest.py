"""One cluster for all tests that need one: it takes longer to start than they take to run."""

import pytest
from nodes import two_nodes


@pytest.fixture(scope="session")
def cluster():
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'hf-tl[ray]'")
    with two_nodes() as running:
        yield running
