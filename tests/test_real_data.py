"""The main job on real photos and weights."""

import pytest
from test_cli import table_rows

from hf_tl.cli.main import main


EXPECTED = {"flowers12": 0.979, "dtd10": 0.860, "fashion900": 0.877}


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_the_full_network_reaches_its_figure_and_beats_the_last_layer(name, real_data, capsys):
    model = str(real_data / "weights" / "mobilenetv2_100.tf2_in1k")
    assert main(["probe", model, str(real_data / "sets" / name), "--image-size", "160", "--C", "1"]) == 0
    full, last = table_rows(capsys.readouterr().out)
    assert full[:4] == ["full network", "paper", "52", "17,056"]
    assert float(full[6]) == pytest.approx(EXPECTED[name], abs=0.015)
    assert float(full[6]) > float(last[6])


@pytest.mark.real
@pytest.mark.slow
def test_transformers_and_timm_agree_on_the_same_folder(real_data):
    """The TimmWrapper of transformers holds the same network; the features must be the same."""
    import numpy as np
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from hf_tl import FullNetworkEmbedding, Network, load_network

    folder = str(real_data / "weights" / "mobilenetv2_100.tf2_in1k")
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 255, (224, 224, 3), dtype=np.uint8)) for _ in range(4)]
    processor, model = (
        AutoImageProcessor.from_pretrained(folder),
        AutoModelForImageClassification.from_pretrained(folder),
    )
    wrapped = Network(model, lambda images: dict(processor(images, return_tensors="pt")))
    options = {"recipe": "raw", "progress": False}
    ours = FullNetworkEmbedding(load_network(folder), **options).activations(pictures)
    theirs = FullNetworkEmbedding(wrapped, **options).activations(pictures)
    assert [layer.name for layer in theirs.layers] == [f"timm_model.{layer.name}" for layer in ours.layers]
    assert np.abs(ours.values - theirs.values).max() < 1e-4
