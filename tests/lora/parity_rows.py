"""The rows of the comparison with PEFT: a tiny network, and a config for both."""

from __future__ import annotations

import copy
import functools
import warnings
from dataclasses import dataclass, field

import peft
import torch
from torch import nn

from hf_tl import LoraConfig, add_lora
from hf_tl.lora.adapted import adapter_state_dict, record_of
from hf_tl.lora.save import adapter_on


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: of the row.
        network: key of NETWORKS.
        config: fields of the config, PEFT's and ours.
        merges: PEFT can merge it.
    """

    name: str
    network: str
    config: dict = field(default_factory=dict)
    merges: bool = True


@dataclass
class Pair:
    """PEFT's network and ours, from the same weights, on the same batch."""

    row: Row
    base: nn.Module
    batch: object
    peft: nn.Module
    ours: nn.Module


def make_pair(row: Row) -> Pair:
    """Both networks with fresh adapters; ours with the values that PEFT drew."""
    torch.manual_seed(0)
    model, batch = NETWORKS[row.network]()
    model = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**row.config))
    config = LoraConfig(**{"modules_to_save": (), **row.config})
    ours = add_lora(copy.deepcopy(model), config, running_statistics="ignore")
    pair = Pair(row, model, batch, theirs, ours)
    copy_to_ours(pair)
    return pair


def peft_tensors(pair: Pair) -> dict[str, torch.Tensor]:
    """What PEFT would save."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model_state_dict(pair.peft, save_embedding_layers=False)


def copy_to_ours(pair: Pair) -> None:
    """PEFT's values into our adapter, by the names of the file."""
    ours = adapter_state_dict(pair.ours)
    for name, tensor in peft_tensors(pair).items():
        if name in ours:  # a name that is missing is what test_keys is for
            ours[name].copy_(tensor)


def randomise(pair: Pair) -> None:
    """PEFT's adapter at random, all of it, and ours the same."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in peft_tensors(pair).items():
            if "lora_" in name:
                noise = torch.randn(tensor.shape, generator=generator) * 0.1
                tensor.copy_(tensor * (1 + noise) if "magnitude" in name else noise)
    copy_to_ours(pair)


def live_names(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by name in the network that was adapted."""
    prefix = "base_model.model."
    return {name.removeprefix(prefix): parameter for name, parameter in model.named_parameters()}


def adapted(pair: Pair) -> set[str]:
    """Names of the modules that got an adapter in ours."""
    return set(record_of(pair.ours).layers)


class Mlp(nn.Module):
    def __init__(self, bias: bool = True):
        super().__init__()
        self.lin0 = nn.Linear(10, 20, bias=bias)
        self.norm = nn.LayerNorm(20)
        self.lin1 = nn.Linear(20, 20, bias=bias)
        self.head = nn.Linear(20, 4)

    def forward(self, x):
        return self.head(self.lin1(self.norm(self.lin0(x).relu())).relu())


class Conv1dOfTransformers(nn.Module):
    def __init__(self):
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.embedding = nn.Embedding(30, 8, padding_idx=0)
        self.conv1d = Conv1D(12, 8)
        self.head = nn.Linear(12, 3)

    def forward(self, ids):
        return self.head(self.conv1d(self.embedding(ids)).relu())


class Convolutions(nn.Module):
    def __init__(self, kind, *, groups=1, kernel=3, stride=1, padding=1, bias=True):
        super().__init__()
        self.conv0 = kind(4, 8, 3, padding=1)
        self.conv1 = kind(8, 16, kernel, stride=stride, padding=padding, groups=groups, bias=bias)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.conv1(self.conv0(x).relu())
        return self.head(x.flatten(2).mean(2))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0])


class WithNorm(nn.Module):
    """Convolutions between batch normalisations, whose statistics are part of modules_to_save."""

    def __init__(self):
        super().__init__()
        self.conv0 = nn.Conv2d(3, 8, 3)
        self.bn0 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.conv1(self.bn0(self.conv0(x)).relu()).flatten(2).mean(2))


def _ids(rows=2, length=9, words=40):
    return torch.randint(1, words, (rows, length), generator=torch.Generator().manual_seed(5))


def _noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


@functools.cache
def bert():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = BertConfig(vocab_size=40, max_position_embeddings=16, num_labels=3, **sizes)
    return BertForSequenceClassification(config), {"input_ids": _ids()}


@functools.cache
def vit():
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = ViTConfig(image_size=16, patch_size=8, num_labels=3, **sizes)
    return ViTForImageClassification(config), {"pixel_values": _noise(2, 3, 16, 16)}


@functools.cache
def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config), {"input_ids": _ids()}


@functools.cache
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = LlamaConfig(vocab_size=40, num_key_value_heads=2, max_position_embeddings=16, pad_token_id=0, **sizes)
    return LlamaForCausalLM(config), {"input_ids": _ids()}


@functools.cache
def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    config = T5Config(vocab_size=40, decoder_start_token_id=0, pad_token_id=0, **sizes)
    return T5ForConditionalGeneration(config), {"input_ids": _ids(), "decoder_input_ids": _ids(length=5)}


@functools.cache
def resnet():
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    return ResNetForImageClassification(config), {"pixel_values": _noise(2, 3, 32, 32)}


@functools.cache
def convnext():
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32, num_labels=3)
    return ConvNextForImageClassification(config), {"pixel_values": _noise(2, 3, 32, 32)}


@functools.cache
def timm_vit():
    import timm

    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
    return timm.create_model("vit_tiny_patch16_224", **sizes), _noise(2, 3, 16, 16)


NETWORKS = {
    "mlp": lambda: (Mlp(), _noise(5, 10)),
    "mlp-no-bias": lambda: (Mlp(bias=False), _noise(5, 10)),
    "embedding": lambda: (Conv1dOfTransformers(), _ids(words=30)),
    "conv1d": lambda: (Convolutions(nn.Conv1d), _noise(2, 4, 12)),
    "conv2d": lambda: (Convolutions(nn.Conv2d), _noise(2, 4, 10, 10)),
    "conv3d": lambda: (Convolutions(nn.Conv3d), _noise(2, 4, 6, 6, 6)),
    "conv-stride": lambda: (Convolutions(nn.Conv2d, stride=2, padding=(2, 1), bias=False), _noise(2, 4, 10, 10)),
    "conv-1x1": lambda: (Convolutions(nn.Conv2d, kernel=1, padding=0), _noise(2, 4, 10, 10)),
    "conv-same": lambda: (Convolutions(nn.Conv2d, kernel=(5, 3), padding="same"), _noise(2, 4, 10, 10)),
    "conv-groups": lambda: (Convolutions(nn.Conv2d, groups=4), _noise(2, 4, 10, 10)),
    "attention": lambda: (Attention(), _noise(2, 5, 16)),
    "norm": lambda: (WithNorm(), _noise(4, 3, 10, 10)),
    "bert": bert,
    "vit": vit,
    "gpt2": gpt2,
    "llama": llama,
    "t5": t5,
    "resnet": resnet,
    "convnext": convnext,
    "timm-vit": timm_vit,
}
QV = ["query", "value"]
DENSE = ["query", "key", "value", "dense"]
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROWS = [
    Row("mlp", "mlp", {"target_modules": ["lin0", "lin1"]}),
    Row("mlp one", "mlp", {"target_modules": ["lin1"], "r": 4, "lora_alpha": 16}),
    Row("mlp rank 1", "mlp", {"target_modules": ["lin0"], "r": 1, "lora_alpha": 2}),
    Row("mlp rank above width", "mlp", {"target_modules": ["lin0"], "r": 32, "lora_alpha": 32}),
    Row("mlp odd scaling", "mlp", {"target_modules": ["lin0", "lin1"], "r": 3, "lora_alpha": 10}),
    Row("mlp rslora", "mlp", {"target_modules": ["lin0", "lin1"], "r": 16, "use_rslora": True}),
    Row("mlp rslora odd", "mlp", {"target_modules": ["lin0"], "r": 6, "use_rslora": True}),
    Row("mlp dropout", "mlp", {"target_modules": ["lin0", "lin1"], "lora_dropout": 0.3}),
    Row("mlp dora", "mlp", {"target_modules": ["lin0", "lin1"], "use_dora": True}),
    Row("mlp dora dropout", "mlp", {"target_modules": ["lin0"], "use_dora": True, "lora_dropout": 0.3}),
    Row("mlp dora no bias", "mlp-no-bias", {"target_modules": ["lin0", "lin1"], "use_dora": True}),
    Row("mlp no bias", "mlp-no-bias", {"target_modules": ["lin0", "lin1"]}),
    Row("mlp lora bias", "mlp", {"target_modules": ["lin0", "lin1"], "lora_bias": True}),
    Row("mlp bias all", "mlp", {"target_modules": ["lin0"], "bias": "all"}),
    Row("mlp bias lora only", "mlp", {"target_modules": ["lin0"], "bias": "lora_only"}),
    Row("mlp head", "mlp", {"target_modules": ["lin0"], "modules_to_save": ["head"]}),
    Row("mlp head and norm", "mlp", {"target_modules": ["lin1"], "modules_to_save": ["head", "norm"]}),
    Row("mlp rank pattern", "mlp", {"target_modules": ["lin0", "lin1"], "rank_pattern": {"lin1": 2}}),
    Row("mlp alpha pattern", "mlp", {"target_modules": ["lin0", "lin1"], "alpha_pattern": {"lin.*0": 32}}),
    Row("mlp anchored", "mlp", {"target_modules": ["lin0", "lin1"], "rank_pattern": {"^lin0": 4}}),
    Row("mlp regex", "mlp", {"target_modules": r"lin\d"}),
    Row("mlp exclude", "mlp", {"target_modules": r"lin\d", "exclude_modules": ["lin0"]}),
    Row("mlp exclude regex", "mlp", {"target_modules": ["lin0", "lin1"], "exclude_modules": r".*1"}),
    Row("embedding", "embedding", {"target_modules": ["embedding"]}),
    Row("embedding dora", "embedding", {"target_modules": ["embedding"], "use_dora": True}),
    Row("embedding odd", "embedding", {"target_modules": ["embedding"], "r": 3}),
    Row("Conv1D", "embedding", {"target_modules": ["conv1d"], "fan_in_fan_out": True}),
    Row("Conv1D dora", "embedding", {"target_modules": ["conv1d"], "fan_in_fan_out": True, "use_dora": True}),
    Row("Conv1D and embedding", "embedding", {"target_modules": ["embedding", "conv1d"], "fan_in_fan_out": True}),
    Row("conv1d", "conv1d", {"target_modules": ["conv0", "conv1"]}),
    Row("conv1d dora", "conv1d", {"target_modules": ["conv1"], "use_dora": True}),
    Row("conv2d", "conv2d", {"target_modules": ["conv0", "conv1"]}),
    Row("conv2d and linear", "conv2d", {"target_modules": ["conv1", "head"]}),
    Row("conv2d dropout", "conv2d", {"target_modules": ["conv1"], "lora_dropout": 0.2}),
    Row("conv2d dora", "conv2d", {"target_modules": ["conv0", "conv1"], "use_dora": True}),
    Row("conv2d lora bias", "conv2d", {"target_modules": ["conv1"], "lora_bias": True}),
    Row("conv2d stride", "conv-stride", {"target_modules": ["conv1"]}),
    Row("conv2d stride dora", "conv-stride", {"target_modules": ["conv1"], "use_dora": True}),
    Row("conv2d 1x1", "conv-1x1", {"target_modules": ["conv1"]}),
    Row("conv2d same", "conv-same", {"target_modules": ["conv1"]}),
    Row("conv2d groups", "conv-groups", {"target_modules": ["conv1"]}, merges=False),
    Row("conv3d", "conv3d", {"target_modules": ["conv0", "conv1"]}),
    Row("conv3d dora", "conv3d", {"target_modules": ["conv1"], "use_dora": True}),
    Row("attention", "attention", {"target_modules": ["attention"]}),
    Row("attention and head", "attention", {"target_modules": ["attention"], "modules_to_save": ["head"]}),
    Row("norm statistics", "norm", {"target_modules": ["conv0", "conv1"], "modules_to_save": ["bn0", "fc"]}),
    Row("bert", "bert", {"target_modules": QV}),
    Row("bert dense", "bert", {"target_modules": DENSE, "modules_to_save": ["classifier"]}),
    Row("bert dropout", "bert", {"target_modules": QV, "lora_dropout": 0.1}),
    Row("bert dora", "bert", {"target_modules": QV, "use_dora": True}),
    Row("bert bias all", "bert", {"target_modules": QV, "bias": "all"}),
    Row("bert bias lora only", "bert", {"target_modules": DENSE, "bias": "lora_only"}),
    Row("bert layer 1", "bert", {"target_modules": QV, "layers_to_transform": [1]}),
    Row("bert layer pattern", "bert", {"target_modules": QV, "layers_to_transform": 0, "layers_pattern": "layer"}),
    Row("bert embeddings", "bert", {"target_modules": ["word_embeddings", "query"]}),
    Row("bert patterns", "bert", {"target_modules": QV, "rank_pattern": {"layer.0.*query": 2}, "r": 4}),
    Row("vit", "vit", {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}),
    Row("vit patches", "vit", {"target_modules": ["projection"]}),
    Row("vit dora", "vit", {"target_modules": ["q_proj", "fc1"], "use_dora": True}),
    Row("gpt2", "gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    Row("gpt2 mlp", "gpt2", {"target_modules": ["c_fc", "c_proj"], "fan_in_fan_out": True, "lora_dropout": 0.1}),
    Row("llama", "llama", {"target_modules": ["q_proj", "v_proj"]}),
    Row("llama all", "llama", {"target_modules": LLAMA, "use_rslora": True, "r": 4}),
    Row("llama all-linear", "llama", {"target_modules": "all-linear"}),
    Row("t5", "t5", {"target_modules": ["q", "v"]}),
    Row("t5 feed-forward", "t5", {"target_modules": ["wi", "wo"], "r": 4}),
    Row("resnet", "resnet", {"target_modules": ["convolution"], "modules_to_save": ["classifier.1"]}),
    Row("convnext", "convnext", {"target_modules": ["pwconv1", "pwconv2"]}),
    Row("convnext patches", "convnext", {"target_modules": ["patch_embeddings"], "use_dora": True}),
    Row("timm vit", "timm-vit", {"target_modules": ["qkv", "fc1"], "modules_to_save": ["head"]}),
    Row("timm vit patches", "timm-vit", {"target_modules": ["patch_embed.proj", "attn.proj"]}),
]


def exported(model: nn.Module, *, adapter_name: str = "default") -> tuple[peft.LoraConfig, dict[str, torch.Tensor]]:
    """What PEFT reads of an adapter on a network."""
    adapter = adapter_on(model, adapter_name=adapter_name)
    fields = {name: value for name, value in adapter.config.items() if name not in ("peft_type", "auto_mapping")}
    return peft.LoraConfig(**fields), {f"base_model.model.{name}": tensor for name, tensor in adapter.tensors.items()}
