"""An adapter on the network in a SentenceTransformer, whose own methods save and load it."""

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from hf_tl import InputError, LoraConfig, add_lora, delete_adapter, load_adapter, save_adapter
from hf_tl.lora.adapted import record_of


pytestmark = pytest.mark.slow


@pytest.fixture
def make(tmp_path):
    kind = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    base = tmp_path / "base"
    base.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(60))]
    (base / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(base / "vocab.txt")).save_pretrained(base)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=65, **sizes)).save_pretrained(base)
    return lambda: kind.SentenceTransformer(
        modules=[modules.Transformer(str(base)), modules.Pooling(32)], device="cpu"
    )


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_its_own_methods_save_and_load_the_adapter(make, tmp_path, monkeypatch):
    from sentence_transformers import SentenceTransformer

    model = add_lora(make(), LoraConfig(r=2))
    assert sorted(name.rpartition(".")[2] for name in record_of(model).layers) == ["query"] * 2 + ["value"] * 2
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    model.eval()
    expected = model.encode(["w1 w2 w3"], convert_to_tensor=True)
    assert not torch.allclose(make().encode(["w1 w2 w3"], convert_to_tensor=True), expected, atol=1e-3)
    save_adapter(model, tmp_path / "adapter")
    loaded = load_adapter(make(), tmp_path / "adapter")
    torch.testing.assert_close(loaded.encode(["w1 w2 w3"], convert_to_tensor=True), expected)
    with pytest.warns(UserWarning, match="names .*base', a folder of this machine"):
        model.save_pretrained(str(tmp_path / "whole"))
    whole = SentenceTransformer(str(tmp_path / "whole"), device="cpu")
    torch.testing.assert_close(whole.encode(["w1 w2 w3"], convert_to_tensor=True), expected)
    with pytest.raises(InputError, match=r"would name .*base', from which this SentenceTransformer loads its network"):
        model.push_to_hub("me/x")
    sent = []
    monkeypatch.setattr(SentenceTransformer, "push_to_hub", lambda self, name: sent.append((self, name)))
    delete_adapter(model, merge=True)
    model.push_to_hub("me/x")
    assert sent == [(model, "me/x")]


@pytest.mark.filterwarnings("ignore")
def test_so_do_those_of_a_cross_encoder(make, tmp_path):
    from sentence_transformers import CrossEncoder
    from transformers import BertForSequenceClassification

    make()
    BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1).save_pretrained(tmp_path / "base")
    model = add_lora(CrossEncoder(str(tmp_path / "base"), device="cpu"), LoraConfig(r=2, init_lora_weights="random"))
    pair = [("w1 w2", "w3")]
    expected = model.predict(pair)
    model.save_pretrained(str(tmp_path / "whole"))
    assert CrossEncoder(str(tmp_path / "whole"), device="cpu").predict(pair) == pytest.approx(expected, abs=1e-6)
