"""hf-tl adapter: the examples of its help run, and what cannot be used ends in one sentence."""

import json
import re
import shutil

import pytest
import torch
from peft_zoo import logits, randomise, text, tiny_bert
from tiny import save_wav2vec2

from hf_tl.cli.main import COMMANDS, main


pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # peft 0.21 asks
]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A base network and an adapter of PEFT's under the names of the examples."""
    from peft import LoraConfig, get_peft_model

    tiny_bert().save_pretrained(tmp_path / "path/to/base")
    model = get_peft_model(tiny_bert(), LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS"))
    randomise(model)
    model.save_pretrained(tmp_path / "path/to/adapter")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_examples_of_help_run_as_printed(folders, capsys):
    printed = {}
    for line in COMMANDS["adapter"].EXAMPLES.splitlines():
        assert main(line.split()[1:]) == 0, line
        printed[line.split()[2]] = capsys.readouterr().out
    assert list(printed) == ["inspect", "verify", "merge", "resize", "diff", "push"]
    assert "bert.encoder.layer.1.attention.self.value" in printed["inspect"]
    assert "|dW|/|W|" in printed["inspect"]
    assert (folders / "runs/spectra.png").stat().st_size > 10_000
    assert re.search(r"logits +1 +\d", printed["verify"])
    assert "peft and hf_tl load the same network from it" in printed["verify"]
    assert "merged 4 layers" in printed["merge"]
    assert "largest relative error of an update" in printed["resize"]
    assert "the two give the same network" in printed["diff"]  # noise needs all of r: nothing was cut
    assert "option" not in printed["diff"]
    assert "library_name: peft" in printed["push"]
    assert "for user/name; nothing was sent" in printed["push"]


def test_what_resize_cuts_is_what_diff_finds(folders, capsys):
    assert main(["adapter", "resize", "path/to/adapter", "--rank", "2", "--out", "smaller"]) == 0
    stated = [float(row.split()[-1]) for row in capsys.readouterr().out.splitlines()[2:6]]
    assert main(["adapter", "diff", "path/to/adapter", "smaller"]) == 0
    printed = capsys.readouterr().out
    found = [float(row.split()[-2]) for row in printed.splitlines()[2:6]]
    assert stated == pytest.approx(found, rel=0.02)
    assert "option r: 4 and 2" in printed
    assert "the two give different networks" in printed


def test_verify_prints_differences_that_are_nothing(folders, capsys):
    assert main(["adapter", "verify", "path/to/adapter", "--model", "path/to/base"]) == 0
    rows = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()[2:5]]
    assert [row[0] for row in rows] == ["logits", "gradients", "merged weights"]
    assert float(rows[0][2]) == 0.0
    assert all(float(row[3]) <= 1e-6 for row in rows)
    assert rows[1][1] == "10"  # 4 layers of two factors, and the head


def test_verify_catches_a_difference(folders, monkeypatch, capsys):
    from hf_tl.lora.adapter import Adapter

    sound = Adapter.alpha_of
    monkeypatch.setattr(Adapter, "alpha_of", lambda adapter, name: 1.01 * sound(adapter, name))
    assert main(["adapter", "verify", "path/to/adapter", "--model", "path/to/base"]) == 2
    said = capsys.readouterr().err
    assert re.search(r"peft and hf_tl differ by .* of the largest value in (logits|gradients|merged weights)", said)


def test_the_merged_network_is_the_network_with_its_adapter(folders, capsys):
    from transformers import AutoModelForSequenceClassification

    from hf_tl.lora.load import load_adapter

    assert main(["adapter", "merge", "path/to/adapter", "--model", "path/to/base", "--out", "out"]) == 0
    merged = AutoModelForSequenceClassification.from_pretrained("out").eval()
    expected = logits(load_adapter(tiny_bert(), "path/to/adapter"), text())
    assert torch.allclose(logits(merged, text()), expected, rtol=0, atol=1e-5)
    assert not any("lora" in name or "base_layer" in name for name in merged.state_dict())


def test_a_head_of_another_size_is_built_to_fit(tmp_path, monkeypatch, capsys):
    """The base network has two labels, the adapter's head three."""
    from peft import LoraConfig, get_peft_model

    base = tiny_bert(num_labels=2)
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(tiny_bert(), LoraConfig(r=4, target_modules=["query"], modules_to_save=["classifier"]))
    model.save_pretrained(tmp_path / "adapter")
    assert main(["adapter", "verify", str(tmp_path / "adapter"), "--model", str(tmp_path / "base")]) == 0


def test_an_adapter_of_a_timm_network(tmp_path, timm_folder, capsys):
    from peft import LoraConfig, get_peft_model
    from timm import create_model

    model = create_model(f"local-dir:{timm_folder}", pretrained=True, num_classes=3)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=r".*\.conv1", modules_to_save=["fc"]))
    randomise(model)
    model.save_pretrained(tmp_path / "adapter")
    adapter, base = str(tmp_path / "adapter"), str(timm_folder)
    assert main(["adapter", "verify", adapter, "--model", base]) == 0
    assert main(["adapter", "verify", adapter, "--model", f"local-dir:{base}"]) == 0
    assert main(["adapter", "inspect", adapter, "--model", base]) == 0
    assert main(["adapter", "merge", adapter, "--model", base, "--out", str(tmp_path / "out")]) == 0
    merged = create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert merged.num_classes == 3


def test_an_adapter_of_an_audio_network(tmp_path, capsys):
    from transformers import AutoModelForAudioClassification

    from hf_tl import LoraConfig, add_lora, save_adapter

    base, adapter = str(save_wav2vec2(tmp_path / "base")), str(tmp_path / "adapter")
    model = AutoModelForAudioClassification.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True)
    add_lora(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    randomise(model)
    save_adapter(model, adapter)
    assert main(["adapter", "verify", adapter, "--model", base]) == 0
    assert main(["adapter", "merge", adapter, "--model", base, "--out", str(tmp_path / "out")]) == 0
    recordings = {"input_values": torch.randn(2, 4000)}
    merged = AutoModelForAudioClassification.from_pretrained(tmp_path / "out").eval()
    assert torch.allclose(logits(merged, recordings), logits(model.eval(), recordings), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_an_adapter_of_a_timm_network_that_transformers_wrapped(tmp_path, timm_folder, capsys):
    from transformers import AutoModelForImageClassification

    from hf_tl import LoraConfig, add_lora, save_adapter

    def wrapped(folder):
        model = AutoModelForImageClassification.from_pretrained(folder, num_labels=3, ignore_mismatched_sizes=True)
        return model.eval()

    base = str(shutil.copytree(timm_folder, tmp_path / "base"))
    config = json.loads((tmp_path / "base/config.json").read_text())
    config.pop("model_args", None)  # its "num_classes" is what the wrapper gives timm a second time
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    model = wrapped(base)
    add_lora(model, LoraConfig(r=2, target_modules=r".*layer.*\.conv1"))
    randomise(model)
    save_adapter(model, tmp_path / "adapter")
    adapter = str(tmp_path / "adapter")
    assert main(["adapter", "verify", adapter, "--model", base]) == 0
    capsys.readouterr()
    assert main(["adapter", "inspect", adapter, "--model", base]) == 0
    assert "|dW|/|W|" in capsys.readouterr().out
    assert main(["adapter", "merge", adapter, "--model", base, "--out", str(tmp_path / "out")]) == 0
    images = {"pixel_values": torch.randn(2, 3, 32, 32)}
    merged = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert torch.allclose(logits(merged, images), logits(model.eval(), images), rtol=0, atol=1e-5)


CASES = {
    "no adapter": ("inspect nowhere", "adapter folder 'nowhere' does not exist"),
    "no base": ("verify path/to/adapter --model nowhere/nothing", "model 'nowhere/nothing' is not a folder"),
    "no rank": ("resize path/to/adapter --out out", "give either a rank or the share to keep"),
    "too large": ("resize path/to/adapter --rank 8 --out out", "rank 8 is above the adapter's largest, 4"),
    "another network": (
        "verify path/to/adapter --model path/to/gpt2",
        "does not fit this GPT2.*: .*unexpected: layer",
    ),
    "norms of another network": (
        "inspect path/to/adapter --model path/to/gpt2",
        "does not fit this GPT2.*: 4 unexpected: layer",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_in_one_sentence(case, folders, capsys):
    from peft_zoo import tiny_gpt2

    command, sentence = CASES[case]
    if "path/to/gpt2" in command:
        tiny_gpt2().save_pretrained("path/to/gpt2")
    capsys.readouterr()
    assert main(["adapter", *command.split()]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-tl ")]
    assert len(said) == 1
    assert re.search(sentence, said[0]), said[0]


def test_a_damaged_adapter_is_refused(folders, capsys):
    shutil.copytree("path/to/adapter", "bad")
    (folders / "bad/adapter_model.safetensors").write_bytes(b"not tensors")
    assert main(["adapter", "inspect", "bad"]) == 2
    assert "is damaged or not a safetensors file" in capsys.readouterr().err


def test_a_merged_network_answers_in_transformers_pipeline(tmp_path, text_folder, capsys):
    """With the tokenizer of its base and the names of its classes."""
    from transformers import pipeline

    from hf_tl import LoraConfig, add_lora, load_network, save_adapter

    network = load_network(str(text_folder), classes=["bad", "good", "so-so"])
    add_lora(network.model, LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    randomise(network.model)
    save_adapter(network.model, tmp_path / "adapter")
    command = [
        "adapter",
        "merge",
        str(tmp_path / "adapter"),
        "--model",
        str(text_folder),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 0
    assert "its classes have no names, which --class-names gives" in capsys.readouterr().out
    assert main([*command, "--class-names", "bad", "good"]) == 2
    assert "the network has 3 outputs, but there are 2 names" in capsys.readouterr().err
    assert main([*command, "--class-names", "bad", "good", "so-so"]) == 0
    texts = ["the film was very good", "a dull film"]
    with torch.no_grad():
        expected = network.model(**network.prepare(texts)).logits.softmax(dim=1)
    for answer, shares in zip(
        pipeline("text-classification", model=str(tmp_path / "out"))(texts, top_k=3), expected, strict=True
    ):
        found = {each["label"]: each["score"] for each in answer}
        assert [found[name] for name in ("bad", "good", "so-so")] == pytest.approx(shares.tolist(), abs=1e-4)
