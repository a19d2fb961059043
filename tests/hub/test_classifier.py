"""A classifier on the Hub: what is pushed is what predicts elsewhere."""

import numpy as np
import pytest
from conftest import write_images
from trained import trained

from hf_tl import CardInfo, Classifier, FullNetworkEmbedding, InputError, load_network, load_task
from hf_tl.embedding.batches import Execution


@pytest.fixture
def task(tmp_path):
    write_images(tmp_path / "images", rows=6)
    return load_task(str(tmp_path / "images"), modality="image")


def test_an_embedding_with_its_head_is_whole_on_the_hub(hub, timm_folder, task):
    fne = FullNetworkEmbedding(load_network(str(timm_folder), image_size=32), progress=False)
    made = Classifier.fit(fne, task)
    photos = [task.test[i] for i in range(len(task.test))]
    done = made.push_to_hub("me/pets", info=CardInfo(datasets=["me/pictures"]))
    assert "network/model.safetensors" in done.sizes
    assert str(timm_folder.parent) not in "".join(
        content.decode(errors="ignore") for content in hub.files("me/pets", done.commit).values()
    )  # whose folder it was is nobody's business
    card = hub.files("me/pets", done.commit)["README.md"].decode()
    assert 'Classifier.from_pretrained("me/pets")' in card
    assert "pipeline_tag: image-classification" in card
    pulled = Classifier.from_pretrained("me/pets", revision=done.commit, execution=Execution(progress=False))
    assert np.abs(pulled.predict_proba(photos) - made.predict_proba(photos)).max() < 1e-6
    assert pulled.record == made.record


def test_a_trained_network_is_whole_on_the_hub(hub, tmp_path, timm_folder, text_folder):
    made = trained("bert", folder=tmp_path, timm_folder=timm_folder, text_folder=text_folder)
    classifier = Classifier.from_network(made.network, execution=Execution(progress=False))
    classifier.push_to_hub("me/moods")
    pulled = Classifier.from_pretrained("me/moods", execution=Execution(progress=False))
    assert np.abs(pulled.predict_proba(made.inputs) - classifier.predict_proba(made.inputs)).max() < 1e-6
    with pytest.raises(InputError, match="there is no repository 'me/nothing'"):
        Classifier.from_pretrained("me/nothing")


FILMS = "text,reply,stars,good,sad\n" + "\n".join(
    f"{word} film {i},{'yes' if i % 3 else 'no'},{i % 5},{int(word == 'good')},{i % 2}"
    for i, word in enumerate(["good", "bad"] * 12)
)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"label": "stars", "problem": "regression"}, id="numbers", marks=pytest.mark.slow),
        pytest.param({"label": ["good", "sad"]}, id="several classes"),
        pytest.param({"input_column": ("text", "reply")}, id="pairs", marks=pytest.mark.slow),
    ],
)
def test_what_answers_otherwise_than_with_one_class_is_whole_on_the_hub(hub, tmp_path, text_folder, options):
    (tmp_path / "films.csv").write_text(FILMS)
    options = {"label": "good", "input_column": "text", **options}
    task = load_task(str(tmp_path / "films.csv"), modality="text", **options)
    made = Classifier.fit(FullNetworkEmbedding(load_network(str(text_folder)), progress=False), task)
    made.push_to_hub("me/films")
    pulled = Classifier.from_pretrained("me/films", execution=Execution(progress=False))
    asked = [task.test[i] for i in range(len(task.test))]
    assert pulled.problem == made.problem
    assert list(map(str, pulled.predict(asked))) == list(map(str, made.predict(asked)))
