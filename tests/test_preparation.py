"""What turns raw inputs into batches, for networks loaded by name: a sample alone is the sample in company."""

import numpy as np
import pytest
import torch
import transformers as T
from tokenizers import Tokenizer, models, pre_tokenizers

from hf_tl import FullNetworkEmbedding, InputError, load_network


WORDS = ["<eos>", "<pad>", *"abcdefghijklmnopqrst"]
TEXT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
GPT2 = {"vocab_size": len(WORDS), "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}


def gpt2(positions=64):
    return T.GPT2Model(T.GPT2Config(n_positions=positions, **GPT2))


def bert():
    return T.BertModel(T.BertConfig(vocab_size=len(WORDS), pad_token_id=1, **TEXT))


def roberta(positions):
    config = {"vocab_size": len(WORDS), "pad_token_id": 1, "max_position_embeddings": positions}
    return T.RobertaModel(T.RobertaConfig(**config, **TEXT))


def longformer():
    positions = {"max_position_embeddings": 42, "attention_window": [4, 8], "pad_token_id": 1}
    return T.LongformerModel(T.LongformerConfig(vocab_size=len(WORDS), **positions, **TEXT))


def saved(folder, model, *, pad_token=None, side="right"):
    """The folder of a network whose tokenizer adds nothing to a text; without a `pad_token` as GPT-2's comes."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="t"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {} if pad_token is None else {"pad_token": pad_token}
    model.save_pretrained(folder)
    T.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="t", padding_side=side, **named
    ).save_pretrained(folder)
    return str(folder)


def embedding(folder, **options):
    return FullNetworkEmbedding(load_network(folder), recipe="raw", progress=False, **options)


@pytest.mark.parametrize(("make", "pad_token"), [(gpt2, None), (bert, "<pad>")])
def test_a_tokenizer_that_pads_on_the_left_does_not_move_positions(tmp_path, make, pad_token):
    folder = saved(tmp_path, make(), pad_token=pad_token, side="left")
    for pool in ("mean", "cls", "last-token"):
        fne = embedding(folder, pool=pool)
        together = np.asarray(fne.fit_transform(["a b c d e", "f"]))
        np.testing.assert_allclose(fne.transform(["f"])[:1], together[1:], atol=1e-5)


def test_a_classifier_knows_the_padding_that_its_tokenizer_was_given(tmp_path):
    network = load_network(saved(tmp_path, gpt2()), classes=["a", "b"])
    with torch.no_grad():
        together = network.model(**network.prepare(["a b c d", "e"])).logits
        alone = network.model(**network.prepare(["e"])).logits
    assert torch.allclose(together[1], alone[0], atol=1e-5)


@pytest.mark.parametrize(("make", "pad_token"), [(gpt2, None), (roberta, "<pad>")])
@pytest.mark.filterwarnings("ignore:1 of 2 texts of a batch")
def test_a_text_is_cut_where_positions_end(tmp_path, make, pad_token):
    positions = 12
    folder = saved(tmp_path, make(positions), pad_token=pad_token)
    whole = positions if make is gpt2 else positions - 2  # RoBERTa's begin behind that of padding
    network = load_network(folder)
    assert network.prepare(["a " * 40, "b"])["input_ids"].shape == (2, whole)
    made = FullNetworkEmbedding(network, recipe="raw", progress=False).activations(["a " * 40, "b"])
    assert np.isfinite(made).all()


def test_a_network_that_pads_to_its_window_is_given_texts_of_that_length(tmp_path):
    fne = embedding(saved(tmp_path, longformer(), pad_token="<pad>"))
    together = np.asarray(fne.fit_transform(["a b c d e f g h i", "a", "b c"]))
    np.testing.assert_allclose(fne.transform(["b c"]), together[2:], atol=1e-5)
    assert len(fne.layer_names_) == 2 * 3


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_text_without_a_token_is_a_bad_sample_at_any_batch_size(tmp_path, batch_size):
    folder, texts = saved(tmp_path, gpt2()), ["a b", "", "c"]
    with pytest.raises(InputError, match="sample 1 of samples cannot be read: ValueError: the text is empty"):
        embedding(folder, batch_size=batch_size).fit(texts)
    skipping = embedding(folder, batch_size=batch_size, on_bad_samples="skip")
    assert skipping.fit_transform(texts).indices.tolist() == [0, 2]
    with pytest.raises(InputError, match="none of the 1 samples"):
        skipping.transform([""])


def test_a_recording_beside_a_longer_one_where_padding_cannot_be_masked_is_said(tmp_path):
    """Of wav2vec2-base's kind: group norm over time, and no mask."""
    layers = {"conv_dim": [8] * 2, "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    T.Wav2Vec2Model(T.Wav2Vec2Config(feat_extract_norm="group", **TEXT, **layers, **positions)).save_pretrained(
        tmp_path
    )
    T.Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(tmp_path)
    noise = np.random.default_rng(0).normal(scale=0.1, size=800).astype(np.float32)
    with pytest.warns(UserWarning, match="padding changes what .* layers .* give.*use batch_size=1"):
        embedding(str(tmp_path)).fit([noise, noise[:500]])
    alone = embedding(str(tmp_path), batch_size=1)
    together = np.asarray(alone.fit_transform([noise, noise[:500]]))
    np.testing.assert_array_equal(alone.transform([noise[:500]])[:1], together[1:])
