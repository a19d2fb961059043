"""An adapter on the Hub: what is pushed is what four libraries load; who may, and who may not."""

import json
import traceback

import pytest
import torch
from closeness import ulps
from loopback import TOKEN
from peft_zoo import AUTO_CLASSES_READ_HEADS, logits, randomise, text, tiny_bert

from hf_tl import CardInfo, InputError, LoraConfig, add_lora, load_adapter, push_adapter, save_adapter
from hf_tl.cli.main import main


pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # peft 0.21 asks
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
FILES = {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture
def published(hub, tmp_path):
    """A network on the Hub, and an adapter on it that is on this machine only."""
    from transformers import AutoModelForSequenceClassification

    tiny_bert().save_pretrained(tmp_path / "base")
    hub.seed("me/base", tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained("me/base").eval()
    add_lora(model, LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS"))
    randomise(model)
    return hub, model


def loaders(name, revision=None):
    from peft import AutoPeftModelForSequenceClassification, PeftModel
    from transformers import AutoModelForSequenceClassification

    def base():
        return AutoModelForSequenceClassification.from_pretrained("me/base")

    at = {} if revision is None else {"revision": revision}
    return {
        "hf_tl": lambda: load_adapter(base(), name, revision=revision),
        "peft": lambda: PeftModel.from_pretrained(base(), name, **at),
        "auto peft": lambda: AutoPeftModelForSequenceClassification.from_pretrained(name, **at),
        "transformers": lambda: AutoModelForSequenceClassification.from_pretrained(name, adapter_kwargs=at),
    }


@pytest.mark.slow
@pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
def test_what_is_pushed_is_what_everybody_loads(published):
    hub, model = published
    expected = logits(model, text())
    info = CardInfo(datasets=["me/films"], results={"accuracy": 0.75}, training_seconds=90)
    done = push_adapter(model, "me/adapter", info=info)
    assert done.commit == hub.commits("me/adapter")[-1]
    assert set(hub.files("me/adapter")) == FILES
    assert len(hub.commits("me/adapter")) == 2  # the one of its making, and the push
    way = [path.split("/")[1] for method, path, _ in hub.log if method in ("POST", "PUT")]
    assert ("lfs" in way) is not hub.xet
    assert any("xet-write-token" in path for _, path, _ in hub.log) is hub.xet
    for library, load in loaders("me/adapter").items():
        if library != "transformers" or AUTO_CLASSES_READ_HEADS:
            assert ulps(logits(load().eval(), text()), expected) <= 16, library
    assert any("xet-read-token" in path for _, path, _ in hub.log) is hub.xet


def test_a_revision_is_what_it_was(published):
    hub, model = published
    first = push_adapter(model, "me/adapter")
    old = logits(model, text())
    randomise(model, seed=2)
    second = push_adapter(model, "me/adapter")
    push_adapter(model, "me/adapter", revision="trial")
    new = logits(model, text())
    assert not torch.equal(old, new)
    for revision, expected in ((first.commit, old), (second.commit, new), (None, new), ("trial", new)):
        for library, load in loaders("me/adapter", revision).items():
            if library != "transformers":
                assert ulps(logits(load().eval(), text()), expected) <= 16, (library, revision)
    assert len(hub.commits("me/adapter", "trial")) == 3  # a branch of main, where the same files are no new commit
    with pytest.raises(InputError, match=r"cannot pull 'me/adapter', .*: 'me/adapter' has no revision 'nowhere'"):
        load_adapter(tiny_bert(), "me/adapter", revision="nowhere")


def test_a_folder_is_pushed_without_what_else_is_in_it(published, tmp_path, capsys):
    hub, model = published
    folder = save_adapter(model, tmp_path / "out")
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"train_runtime": 7380.0}]}))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Films\n\nWritten by a person.\n")
    command = ["adapter", "push", str(folder), "me/adapter", "--dataset", "me/films", "--result", "accuracy=0.5"]
    assert main([*command, "--dry-run"]) == 0
    assert "me/adapter" not in hub.repos
    rehearsed = capsys.readouterr().out
    assert main(command) == 0
    assert set(hub.files("me/adapter")) == FILES
    assert hub.files("me/adapter")["adapter_model.safetensors"] == (folder / "adapter_model.safetensors").read_bytes()
    card = hub.files("me/adapter")["README.md"].decode()
    assert card in rehearsed
    for part in (
        "license: mit",
        "Written by a person.",
        "training time | 2.0 h",
        "library_name: peft",
        "base_model: me/base",
    ):
        assert part in card, part
    assert "nothing was sent" in rehearsed
    assert hub.commits("me/adapter")[-1] in capsys.readouterr().out
    assert main(["adapter", "inspect", "me/adapter"]) == 0  # the other verbs take its name
    assert "bert.encoder.layer.1.attention.self.value" in capsys.readouterr().out
    assert main([*command, "--result", "accuracy"]) == 2
    assert "--result takes METRIC=VALUE, such as accuracy=0.93, got 'accuracy'" in capsys.readouterr().err


def test_the_card_says_what_the_hub_indexes(published):
    from huggingface_hub import ModelCard

    hub, model = published
    info = CardInfo(datasets=["me/films", "two words"], results={"accuracy": 0.75}, tags=["films"], license="mit")
    push_adapter(model, "me/adapter", info=info)
    card = ModelCard(hub.files("me/adapter")["README.md"].decode())
    found = card.data.to_dict()
    assert found["library_name"] == "peft"
    assert (found["base_model"], found["base_model_relation"]) == ("me/base", "adapter")
    assert found["datasets"] == ["me/films"]
    assert found["tags"] == ["lora", "hf_tl", "films"]
    assert (found["pipeline_tag"], found["license"]) == ("text-classification", "mit")
    result = card.data.eval_results[0]
    assert (result.metric_type, result.metric_value, result.dataset_type) == ("accuracy", 0.75, "me/films")
    size = len(hub.files("me/adapter")["adapter_model.safetensors"])
    assert f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,}, " in card.text
    assert f"{size / 1000:.1f} kB" in card.text
    assert 'load_adapter(model, "me/adapter")' in card.text
    snippets = card.text.split("```python\n")[1:]
    assert len(snippets) == 3
    for snippet in snippets if AUTO_CLASSES_READ_HEADS else snippets[:2]:
        names = {}
        exec(snippet.split("```")[0], names)
        assert ulps(logits(names["model"].eval(), text()), logits(model, text())) <= 16


def test_what_people_wrote_into_the_card_stays(published):
    hub, model = published
    push_adapter(model, "me/adapter", info=CardInfo(datasets=["me/films"], results={"accuracy": 0.5}))
    files = dict(hub.repos["me/adapter"].find("main")[1])
    old = hub.files("me/adapter")["README.md"].decode()
    edited = old.replace("# adapter", "# Films\n\nA person's words.").replace(
        "library_name", "widget: yes\nlibrary_name"
    )
    files["README.md"] = type(files["README.md"])(len(edited), edited.encode())
    hub.repos["me/adapter"].commit("main", files)
    push_adapter(model, "me/adapter", info=CardInfo(datasets=["me/films"], results={"accuracy": 0.625}))
    card = hub.files("me/adapter")["README.md"].decode()
    assert "A person's words." in card
    assert "widget: true" in card
    assert card.count("## Footprint") == 1
    assert "0.625" in card
    assert "value: 0.5\n" not in card


def test_the_same_push_again_is_no_second_commit(published):
    hub, model = published
    first = push_adapter(model, "me/adapter")
    assert push_adapter(model, "me/adapter").commit == first.commit
    assert len(hub.commits("me/adapter")) == 2


def test_a_private_repository_is_for_its_owner(published, monkeypatch):
    hub, model = published
    push_adapter(model, "me/hidden", private=True)
    assert hub.repos["me/hidden"].private
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="there is no repository 'me/hidden' that you may see"):
        load_adapter(tiny_bert(), "me/hidden")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    load_adapter(tiny_bert(), "me/hidden")
    push_adapter(model, "me/open")
    with pytest.raises(InputError, match="'me/open' is public, and private was asked for"):
        push_adapter(model, "me/open", private=True)


REFUSALS = {
    "no token": ({"HF_TOKEN": ""}, {}, "a push needs a token that may write: log in with `hf auth login`"),
    "a token of another": ({"HF_TOKEN": "hf_WrongWrongWrong"}, {}, "the Hub does not accept the token"),
    "a token that reads": (
        {"HF_TOKEN": "hf_reader"},
        {},
        "the token may not write there; use one with the role 'write'",
    ),
    "a token in two lines": ({}, {"token": f"{TOKEN}\nx"}, "the token holds blanks"),
    "somebody else's": ({}, {"repo_id": "you/adapter"}, "may not write there; use one with the role 'write' of 'you'"),
    "no owner": ({}, {"repo_id": "adapter"}, "called 'user/name', got 'adapter': the name of its owner is missing"),
    "malformed": ({}, {"repo_id": "me/a b"}, "called 'user/name', got 'me/a b': repo id must use alphanumeric"),
    "base of nobody": ({}, {"base_model": "a b"}, "base_model should be the Hub id of a network"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_refused_is_said_in_one_sentence(published, monkeypatch, case):
    hub, model = published
    environment, arguments, sentence = REFUSALS[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=sentence) as caught:
        push_adapter(model, **{"repo_id": "me/adapter", **arguments})
    assert "\n" not in str(caught.value)
    assert set(hub.repos) == {"me/base"}
    said = "".join(traceback.format_exception(caught.value))
    assert TOKEN not in said
    assert "hf_WrongWrongWrong" not in said


def test_results_need_a_dataset_and_a_task():
    with pytest.raises(InputError, match=r"results \(accuracy\) are measured on a dataset; name it with datasets="):
        CardInfo(results={"accuracy": 1.0})
    info = CardInfo(datasets=["me/films"], results={"accuracy": 1.0})
    plain = add_lora(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(r=2, target_modules=["0"]))
    with pytest.raises(InputError, match=r"results \(accuracy\) belong to a task, which this network's head does not"):
        push_adapter(plain, "me/adapter", info=info)


def test_a_network_of_this_machine_is_named_first(published, tmp_path):
    hub, _ = published
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    add_lora(model, LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    folder = save_adapter(model, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for what in (model, folder):
        with pytest.raises(
            InputError, match=r"in the folder '.*base', which nobody else has; .* base_model='user/name'"
        ):
            push_adapter(what, "me/adapter")
        push_adapter(what, "me/adapter", base_model="me/base")
        pushed = hub.files("me/adapter")
        assert str(tmp_path) not in b"".join(pushed.values()).decode(errors="replace")
        assert json.loads(pushed["adapter_config.json"])["base_model_name_or_path"] == "me/base"
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_offline_is_said_at_once(published, monkeypatch):
    from huggingface_hub import constants

    _, model = published
    push_adapter(model, "me/adapter")
    load_adapter(tiny_bert(), "me/adapter")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    load_adapter(tiny_bert(), "me/adapter")  # from the cache
    with pytest.raises(InputError, match="cannot push to 'me/adapter': the Hub is switched off by HF_HUB_OFFLINE=1"):
        push_adapter(model, "me/adapter")
    with pytest.raises(InputError, match=r"cannot pull 'me/other', .*the Hub is switched off by HF_HUB_OFFLINE=1"):
        load_adapter(tiny_bert(), "me/other")


def test_a_server_that_is_not_there_is_said_so(published, monkeypatch):
    hub, model = published
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.fault = lambda method, path: "drop"
    with pytest.raises(InputError, match=r"cannot be reached, or .*all of it is there or nothing") as caught:
        push_adapter(model, "me/adapter")
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(InputError, match=r"cannot pull 'me/adapter', which is no folder here: the Hub at .* can"):
        load_adapter(tiny_bert(), "me/adapter")


def test_a_repository_without_an_adapter_is_said_so(published):
    with pytest.raises(InputError, match=r"adapter_config.json is missing"):
        load_adapter(tiny_bert(), "me/base")


def test_a_link_out_of_the_folder_is_not_pushed(published, tmp_path):
    """A folder from elsewhere may name its README.md, or all of it, as links to files that are nobody's business."""
    hub, model = published
    (tmp_path / "secret").write_text("hf_SECRET")
    for name in ("README.md", "adapter_config.json", "adapter_model.safetensors"):
        folder = save_adapter(model, tmp_path / name)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "secret")
        with pytest.raises(InputError, match=r"is a link to '.*secret'; put the file itself there"):
            push_adapter(folder, "me/adapter")
    assert set(hub.repos) == {"me/base"}


def test_what_was_pulled_can_be_pushed_on(published):
    """The Hub's cache is made of links."""
    from huggingface_hub import snapshot_download

    hub, model = published
    push_adapter(model, "me/adapter")
    push_adapter(snapshot_download("me/adapter"), "me/copy")
    assert hub.files("me/copy")["adapter_model.safetensors"] == hub.files("me/adapter")["adapter_model.safetensors"]


def test_a_card_that_is_no_text_is_said_so(published, tmp_path):
    _, model = published
    folder = save_adapter(model, tmp_path / "out")
    (folder / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"README.md' is not a text in UTF-8"):
        push_adapter(folder, "me/adapter")
