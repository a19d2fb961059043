"""Trainer(push_to_hub=True), unmodified, on a network with an adapter."""

import pytest
import torch
from closeness import ulps
from loopback import TOKEN
from peft_zoo import AUTO_CLASSES_READ_HEADS, logits, text, tiny_bert
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from hf_tl import LoraConfig, add_lora, load_adapter


pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # peft 0.21 asks
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture
def model(hub, tmp_path):
    tiny_bert().save_pretrained(tmp_path / "base")
    hub.seed("me/base", tmp_path / "base")
    network = AutoModelForSequenceClassification.from_pretrained("me/base")
    return add_lora(network, LoraConfig(r=4, target_modules=["query"], task_type="SEQ_CLS"))


@pytest.mark.slow
@pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
def test_trainer_pushes_the_adapter_and_nothing_else(hub, model, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    rows = [{"input_ids": torch.randint(1, 99, (7,)), "labels": i % 3} for i in range(8)]
    args = TrainingArguments(
        str(tmp_path / "runs" / "films"),
        max_steps=4,
        save_steps=2,
        learning_rate=1e-2,
        push_to_hub=True,
        hub_token=TOKEN,
        hub_model_id="me/films",
        hub_always_push=True,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model, args, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    trainer.save_state()  # with the time that it took
    trainer.push_to_hub(dataset="films", dataset_tags="me/films", tasks="text-classification")
    files = hub.files("me/films")
    assert set(files) - {".gitattributes"} <= {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "trainer_state.json",
        "train_results.json",
    }
    assert TOKEN not in b"".join(b"".join(hub.files("me/films", c).values()) for c in hub.commits("me/films")).decode(
        errors="replace"
    )
    card = files["README.md"].decode()
    for part in (
        "library_name: peft",
        "base_model: me/base",
        "base_model_relation: adapter",
        "- lora",
        "- generated_from_trainer",
        "- me/films",
        "training time |",
        "of the network's",
        "learning_rate: 0.01",
        "load_adapter(",
    ):
        assert part in card, part
    model.eval()
    again = load_adapter(AutoModelForSequenceClassification.from_pretrained("me/base"), "me/films").eval()
    assert torch.equal(logits(again, text()), logits(model, text()))
    if AUTO_CLASSES_READ_HEADS:
        one = AutoModelForSequenceClassification.from_pretrained("me/films").eval()
        assert ulps(logits(one, text()), logits(model, text())) <= 16
    assert (tmp_path / "runs/films/checkpoint-4/model.safetensors").is_file()  # from which Trainer resumes


def test_the_networks_own_push_is_push_adapter(hub, model):
    from hf_tl import InputError
    from hf_tl.lora.merge import delete_adapter

    url = model.push_to_hub("me/films", private=True, tags=["films"], commit_message="One")
    assert url.endswith(hub.commits("me/films")[-1])
    assert hub.repos["me/films"].private
    assert "- films" in hub.files("me/films")["README.md"].decode()
    assert len(hub.commits("me/films")) == 2
    with pytest.raises(InputError, match=r"a push of an adapter has no create_pr; see hf_tl\.push_adapter"):
        model.push_to_hub("me/films", create_pr=True)
    delete_adapter(model)
    model.push_to_hub("me/whole")
    assert "model.safetensors" in hub.files("me/whole")
    assert "adapter_config.json" not in hub.files("me/whole")
