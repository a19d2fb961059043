"""What notebooks show: short, escaped, of every object that a user looks at."""

import numpy as np
import pytest
from journeys import small_bert

from hf_tl import Embedding, Policy, learning_curve, list_layers
from hf_tl.embedding.embedding import LayerColumns
from hf_tl.embedding.full_network import FullNetworkEmbedding
from hf_tl.probes.layer_probes import layer_probes
from hf_tl.probes.probe import FeatureSet, fit_probe
from hf_tl.table import as_html


def embedding(n, seed):
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    values = (generator.normal(size=(n, 6)) + labels[:, None]).astype(np.float32)
    layers = (LayerColumns("stem", 0, 2, 0.0, place="stem"), LayerColumns("<b>", 2, 6, 1.0, place="0/1"))
    return Embedding(values, layers, np.arange(n), labels, ("cat & dog", "<script>"))


@pytest.fixture(scope="module")
def shown():
    train, test = embedding(24, 0), embedding(12, 1)
    probe = fit_probe(train, test, FeatureSet("all", "standardize", FullNetworkEmbedding(recipe="standardize")))
    return {
        "embedding": train,
        "layers": list_layers(small_bert()),
        "policy": Policy("freeze: ..50%").dry_run(small_bert()),
        "probe": probe,
        "evaluation": probe.evaluation,
        "layer probes": layer_probes(train, test, progress=False),
        "curve": learning_curve(train, test, shots=(2, 4), n_splits=2, C=1.0, progress=False),
    }


@pytest.mark.parametrize("name", ["embedding", "layers", "policy", "probe", "evaluation", "layer probes", "curve"])
def test_it_is_shown_short_and_escaped(shown, name):
    html = shown[name]._repr_html_()
    inside = html.partition(">")[2].rpartition("</pre>")[0]
    assert html.startswith("<pre")
    assert "<" not in inside
    assert 1 < len(inside.splitlines()) <= 61


def test_of_a_long_text_the_middle_is_left_out():
    html = as_html("\n".join(map(str, range(100))), most=10)
    assert "4\n... 90 more ...\n95" in html
