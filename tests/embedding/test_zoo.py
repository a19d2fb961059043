"""Networks of every family: each embeds, and a row alone is the row in a batch."""

import numpy as np
import pytest
import timm
import torch
import transformers as T
from lanes import lanes
from torch import nn

from hf_tl import FullNetworkEmbedding, InputError, Network
from hf_tl.preparation import preparation_with


WIDTHS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VISION = {"image_size": 32, "patch_size": 8, **WIDTHS}
TEXT = {"vocab_size": 64, **WIDTHS}


def images(size):
    return [torch.randn(3, size, size) for _ in range(3)], torch.stack


def pixels(size):
    rows, _ = images(size)
    return rows, lambda batch: {"pixel_values": torch.stack(batch)}


def texts(side="right"):
    """Rows of different lengths, padded on one side."""
    rows = [torch.randint(3, 64, (3 + i,)) for i in (4, 0, 2)]

    def pad(row, length, fill):
        missing = (length - len(row), 0) if side == "left" else (0, length - len(row))
        return nn.functional.pad(row, missing, value=fill)

    def prepare(batch):
        length = max(len(row) for row in batch)
        ids = torch.stack([pad(row, length, 0) for row in batch])
        mask = torch.stack([pad(torch.ones_like(row), length, 0) for row in batch])
        positions = {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)} if side == "left" else {}
        return {"input_ids": ids, "attention_mask": mask, **positions}

    return rows, prepare


def sounds():
    rows = [torch.randn(length) for length in (1600, 900, 1598)]

    def prepare(batch):
        length = max(len(row) for row in batch)
        values = torch.stack([nn.functional.pad(row, (0, length - len(row))) for row in batch])
        mask = torch.stack([(torch.arange(length) < len(row)).long() for row in batch])
        return {"input_values": values, "attention_mask": mask}

    return rows, prepare


def wav2vec2():
    return T.Wav2Vec2Model(
        T.Wav2Vec2Config(
            conv_dim=(8, 8, 8),
            conv_stride=(5, 2, 2),
            conv_kernel=(10, 3, 3),
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            **TEXT,
        )
    )


ZOO = {
    "resnet18": (lambda: timm.create_model("resnet18"), lambda: images(32)),
    "vgg11_bn": (lambda: timm.create_model("vgg11_bn", num_classes=5, mlp_ratio=1 / 64), lambda: images(32)),
    "densenet121": (lambda: timm.create_model("densenet121"), lambda: images(32)),
    "mobilenetv3": (lambda: timm.create_model("mobilenetv3_small_100"), lambda: images(32)),
    "efficientnet_b0": (lambda: timm.create_model("efficientnet_b0"), lambda: images(32)),
    "regnety_002": (lambda: timm.create_model("regnety_002"), lambda: images(32)),
    "convnext_atto": (lambda: timm.create_model("convnext_atto"), lambda: images(32)),
    "vit": (lambda: timm.create_model("test_vit", img_size=32, patch_size=8), lambda: images(32)),
    "swin": (
        lambda: T.SwinModel(
            T.SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=4)
        ),
        lambda: pixels(32),
    ),
    "mixer": (lambda: timm.create_model("mixer_s32_224", img_size=64), lambda: images(64)),
    "mobilevit": (lambda: timm.create_model("mobilevit_xxs"), lambda: images(32)),
    "hf_vit": (lambda: T.ViTForImageClassification(T.ViTConfig(**VISION)), lambda: pixels(32)),
    "hf_dinov2": (
        lambda: T.Dinov2ForImageClassification(
            T.Dinov2Config(
                image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2
            )
        ),
        lambda: pixels(32),
    ),
    "hf_resnet": (
        lambda: T.ResNetForImageClassification(
            T.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic")
        ),
        lambda: pixels(64),
    ),
    "bert": (lambda: T.BertForSequenceClassification(T.BertConfig(**TEXT)), texts),
    "roberta": (lambda: T.RobertaModel(T.RobertaConfig(pad_token_id=1, **TEXT)), texts),
    "distilbert": (
        lambda: T.DistilBertModel(T.DistilBertConfig(vocab_size=64, dim=16, n_layers=2, n_heads=2, hidden_dim=32)),
        texts,
    ),
    "albert": (lambda: T.AlbertModel(T.AlbertConfig(embedding_size=8, **TEXT)), texts),
    "deberta_v2": (
        lambda: T.DebertaV2Model(T.DebertaV2Config(relative_attention=True, pos_att_type=["p2c", "c2p"], **TEXT)),
        texts,
    ),
    "modernbert": (lambda: T.ModernBertModel(T.ModernBertConfig(pad_token_id=0, **TEXT)), texts),
    "gpt2": (lambda: T.GPT2LMHeadModel(T.GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2)), texts),
    "llama_left": (lambda: T.LlamaForCausalLM(T.LlamaConfig(num_key_value_heads=2, **TEXT)), lambda: texts("left")),
    "mixtral": (
        lambda: T.MixtralForCausalLM(T.MixtralConfig(num_key_value_heads=2, num_local_experts=2, **TEXT)),
        texts,
    ),
    "t5_encoder": (
        lambda: T.T5EncoderModel(T.T5Config(vocab_size=64, d_model=16, d_ff=32, d_kv=8, num_layers=2, num_heads=2)),
        texts,
    ),
    "wav2vec2": (wav2vec2, sounds),
}


def build(name):
    torch.manual_seed(0)
    model, data = ZOO[name]
    rows, prepare = data()
    modality = "text" if data is texts else "array"
    return Network(model().eval(), prepare, modality=modality, name=name), rows


QUICK = ("resnet18", "vit", "hf_vit", "hf_resnet", "bert", "gpt2", "llama_left", "t5_encoder", "mixtral", "wav2vec2")
CASES = [(name, "auto") for name in ZOO]
CASES += [
    (name, "blocks") for name in ("resnet18", "densenet121", "regnety_002", "convnext_atto", "vit", "swin", "bert")
]


@pytest.mark.parametrize("case", lanes(CASES, fast=lambda case: case[0] in QUICK), ids="-".join)
def test_a_row_alone_is_the_row_in_a_batch(case):
    name, taps = case
    network, rows = build(name)
    fne = FullNetworkEmbedding(network, recipe="raw", taps=taps, batch_size=3, progress=False)
    together = np.asarray(fne.fit_transform(rows))
    alone = np.asarray(fne.set_params(batch_size=1).transform(rows))
    assert together.shape == (3, fne.n_features_)
    np.testing.assert_allclose(alone, together, atol=2e-4, rtol=2e-3)
    assert together.std(axis=0).max() > 0


POOLINGS = ("max", "gem", "cls", "patch-mean", "last-token")
POOLED = [(name, pool) for name in ("bert", "llama_left", "wav2vec2", "vit") for pool in POOLINGS]
USUAL = (("bert", "max"), ("bert", "cls"), ("llama_left", "last-token"), ("wav2vec2", "gem"), ("vit", "patch-mean"))


@pytest.mark.parametrize("case", lanes(POOLED, fast=lambda case: case in USUAL), ids="-".join)
def test_every_pooling_is_blind_to_padding(case):
    name, pool = case
    network, rows = build(name)
    fne = FullNetworkEmbedding(network, recipe="raw", pool=pool, batch_size=3, progress=False)
    together = np.asarray(fne.fit_transform(rows))
    alone = np.asarray(fne.set_params(batch_size=1).transform(rows))
    np.testing.assert_allclose(alone, together, atol=2e-4, rtol=2e-3)


def taps_of(name, taps="auto"):
    network, rows = build(name)
    fne = FullNetworkEmbedding(network, taps=taps, progress=False).fit(rows)
    return [(layer.name, layer.kind, layer.stop - layer.start) for layer in fne.layers_]


def test_auto_of_a_transformer_is_attention_hidden_layer_and_block():
    assert taps_of("llama_left") == [
        *[
            (f"model.layers.{i}{part}", kind, width)
            for i in range(2)
            for part, kind, width in (
                (".self_attn.o_proj", "attention", 16),
                (".mlp.gate_proj", "hidden", 32),
                ("", "block", 16),
            )
        ],
        ("model.norm", "norm", 16),
    ]
    assert taps_of("gpt2")[:3] == [
        ("transformer.h.0.attn.c_proj", "attention", 16),
        ("transformer.h.0.mlp.c_fc", "hidden", 64),
        ("transformer.h.0", "block", 16),
    ]
    assert taps_of("vit", "blocks")[-1][:2] == ("norm", "norm")


def test_a_shared_layer_is_named_by_its_calls():
    names = [name for name, _, _ in taps_of("albert")]
    assert any(name.endswith("#1") for name in names)
    assert any(name.endswith("#2") for name in names)
    assert len(names) == len(set(names))


def test_a_gated_mlp_is_read_where_its_product_is():
    network, rows = build("llama_left")
    fne = FullNetworkEmbedding(network, recipe="raw", taps=["model.layers.1.mlp.gate_proj"], progress=False)
    read = np.asarray(fne.activations(rows[:1]))
    seen = []
    handle = network.model.model.layers[1].mlp.down_proj.register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    with torch.no_grad():
        network.model(**network.prepare(rows[:1]))
    handle.remove()
    np.testing.assert_allclose(read[0], seen[0][0].mean(dim=0).numpy(), atol=1e-6)


def test_routers_are_left_out():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up, self.down = nn.Linear(4, 2), nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.down(self.up(x).relu()) * self.gate(x).softmax(-1).amax(-1, keepdim=True)

    rows = list(torch.randn(4, 4))
    fne = FullNetworkEmbedding(Network(Routed(), torch.stack), progress=False).fit(rows)
    assert fne.layer_names_ == ["up", "down"]


def test_a_function_chooses_modules():
    network, rows = build("hf_vit")
    chosen = FullNetworkEmbedding(
        network, recipe="raw", taps=lambda name, module: isinstance(module, nn.LayerNorm), progress=False
    )
    made = chosen.activations(rows)
    assert {layer.kind for layer in made.layers} == {"other", "norm"}
    assert len(made.layers) == 5
    with torch.no_grad():
        states = network.model(**network.prepare(rows), output_hidden_states=True).hidden_states
    blocks = FullNetworkEmbedding(network, recipe="raw", taps="blocks", progress=False).activations(rows)
    np.testing.assert_allclose(blocks.values[:, :16], states[1].mean(dim=1), atol=1e-5)


def test_cls_and_patches_of_a_vision_transformer():
    network, rows = build("hf_vit")
    with torch.no_grad():
        states = network.model(**network.prepare(rows), output_hidden_states=True).hidden_states[1]
    for pool, expected in (("cls", states[:, 0]), ("patch-mean", states[:, 1:].mean(1)), ("max", states.amax(1))):
        fne = FullNetworkEmbedding(network, recipe="raw", taps="blocks", pool={"block": pool}, progress=False)
        np.testing.assert_allclose(fne.activations(rows).values[:, :16], expected, atol=1e-5)


def test_describe_shows_every_tap():
    network, rows = build("hf_vit")
    table = FullNetworkEmbedding(network, pool={"block": "cls"}).describe(rows)
    assert len(table.splitlines()) == 2 + 2 * 3 + 1 + 1
    assert "block" in table
    assert "cls" in table
    assert table.splitlines()[-2].endswith("128:144")
    assert table.splitlines()[-1] == "not read: classifier: the classifier of the source task"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "clss"}, "there is no pooling 'clss'; the closest are 'cls'"),
        ({"pool": {"blok": "max"}}, "there is no kind of tap 'blok'; the closest are 'block'"),
        ({"taps": "conv"}, "bert has no layers for taps='conv'"),
        ({"taps": lambda name, module: False}, "selects none of the layers"),
    ],
)
def test_wrong_choices_end_in_a_sentence(options, message):
    network, rows = build("bert")
    with pytest.raises(ValueError, match=message):
        FullNetworkEmbedding(network, progress=False, **options).fit(rows)


def test_a_recording_shorter_than_a_frame_is_a_bad_sample():
    network, _ = build("wav2vec2")
    prepare = preparation_with(network.model, T.Wav2Vec2FeatureExtractor(return_attention_mask=True), name="net")
    noise = [np.random.default_rng(0).normal(scale=0.1, size=n).astype(np.float32) for n in (900, 700, 3)]
    for batch_size in (1, 3):
        options = {"batch_size": batch_size, "progress": False}
        with pytest.raises(
            InputError, match=r"sample 2 of samples cannot .* has 3 samples at 16000 Hz, and one frame"
        ):
            FullNetworkEmbedding(Network(network.model, prepare), **options).fit(noise)
        skipping = FullNetworkEmbedding(Network(network.model, prepare), on_bad_samples="skip", **options)
        assert skipping.fit_transform(noise).indices.tolist() == [0, 1]


def test_audio_must_be_padded_on_the_right():
    network, rows = build("wav2vec2")
    flipped = Network(network.model, lambda batch: {k: v.flip(1) for k, v in network.prepare(batch).items()})
    with pytest.raises(ValueError, match="must be padded on the right"):
        FullNetworkEmbedding(flipped, progress=False).fit(rows)
