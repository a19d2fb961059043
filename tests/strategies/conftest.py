"""One network and a small task of three colours, and eight samples of each to learn from."""

import numpy as np
import pytest
from one_comparison import task

from hf_tl.strategies import Transfer
from hf_tl.strategies.draws import draw, usable_samples


@pytest.fixture(scope="module")
def transfer(timm_folder):
    return Transfer.of(str(timm_folder), task(), image_size=32)


@pytest.fixture(scope="module")
def drawn(transfer):
    pool, _ = usable_samples(transfer.labels, n_train=transfer.n_train, groups=np.arange(len(transfer.labels)))
    return draw(transfer.labels, pool, shots=8, seed=0)
