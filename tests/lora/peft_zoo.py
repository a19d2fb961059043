"""Small networks and the PEFT configurations whose saved adapters hf_tl must read."""

import torch
import transformers
from packaging.version import Version
from torch import nn


AUTO_CLASSES_READ_HEADS = Version(transformers.__version__) >= Version("5.18")  # older ones leave modules_to_save out
LIVELY = {"initializer_range": 0.2}  # outputs that depend on every layer: with 0.02 a lost update hardly shows


def tiny_bert(**changes):
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, **LIVELY}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    config = BertConfig(**{"vocab_size": 99, "num_labels": 3, **sizes, **dropout, **changes})
    return BertForSequenceClassification(config).eval()


def tiny_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=99, **sizes, **LIVELY)).eval()


def tiny_llama(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, **LIVELY}
    return LlamaForCausalLM(LlamaConfig(vocab_size=99, intermediate_size=48, **sizes, **changes)).eval()


def tiny_t5():
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(vocab_size=99, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ).eval()


def tiny_vit():
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, **LIVELY}
    return ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=3, **sizes)).eval()


def tiny_resnet():
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    return ResNetForImageClassification(config).eval()


def tiny_timm_vit():
    import timm

    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=3, img_size=32).eval()


class Convs(nn.Module):
    """Convolutions that stride, dilate and come in groups, a norm with statistics, and a head."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 16, 3, groups=4, padding=1)
        self.head = nn.Linear(16, 3)

    def forward(self, pixels):
        features = self.grouped(torch.relu(self.norm(self.first(pixels))))
        return self.head(features.mean((2, 3)))


class Attention(nn.Module):
    """torch's own attention: one fused projection."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens):
        values = self.embed(tokens)
        return self.head(self.attention(values, values, values, need_weights=False)[0].mean(1))


def seeded(build):
    def made():
        torch.manual_seed(0)
        return build().eval()

    return made


def tokens(rows=3, length=7, top=20):
    return torch.randint(0, top, (rows, length), generator=torch.Generator().manual_seed(1))


def text():
    return {"input_ids": tokens()}


def pixels():
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))}


def raw_pixels():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def seq2seq():
    return {"input_ids": tokens(), "decoder_input_ids": tokens(length=4)}


ZOO = {
    "bert-query-value": (tiny_bert, text, {"target_modules": ["query", "value"], "r": 4, "lora_alpha": 8}),
    "bert-all-linear-rslora": (tiny_bert, text, {"target_modules": "all-linear", "r": 3, "use_rslora": True}),
    "bert-patterns": (
        tiny_bert,
        text,
        {
            "target_modules": ["query", "key", "dense"],
            "rank_pattern": {"query": 2, r"layer\.1\.attention\.self\.key": 5},
            "alpha_pattern": {"^bert.encoder.layer.0.intermediate.dense": 20},
        },
    ),
    "bert-dora": (tiny_bert, text, {"target_modules": ["query", "dense"], "use_dora": True, "r": 4}),
    "bert-bias-all": (tiny_bert, text, {"target_modules": ["query"], "bias": "all"}),
    "bert-bias-lora-only": (tiny_bert, text, {"target_modules": ["query"], "bias": "lora_only"}),
    "bert-lora-bias": (tiny_bert, text, {"target_modules": ["query", "value"], "lora_bias": True}),
    "bert-head": (tiny_bert, text, {"target_modules": ["query"], "task_type": "SEQ_CLS"}),
    "gpt2-conv1d": (tiny_gpt2, text, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "r": 4}),
    "llama-embedding": (tiny_llama, text, {"target_modules": ["embed_tokens", "q_proj"], "task_type": "CAUSAL_LM"}),
    "t5": (tiny_t5, seq2seq, {"target_modules": ["q", "v", "wo"], "init_lora_weights": "gaussian"}),
    "vit-blocks": (tiny_vit, pixels, {"target_modules": ["q_proj", "fc1"], "layers_to_transform": [1]}),
    "resnet-convolutions": (
        tiny_resnet,
        pixels,
        {"target_modules": ["convolution"], "modules_to_save": ["classifier", "normalization"], "r": 4},
    ),
    "timm-qkv": (
        tiny_timm_vit,
        raw_pixels,
        {"target_modules": r"blocks\.\d+\.attn\.qkv", "modules_to_save": ["head"]},
    ),
    "grouped-convolution": (seeded(Convs), raw_pixels, {"target_modules": ["first", "grouped"], "r": 4}),
    "attention": (seeded(Attention), tokens, {"target_modules": ["attention", "embed"], "r": 4}),
    "bert-olora": (tiny_bert, text, {"target_modules": ["query"], "init_lora_weights": "olora", "r": 4}),
    "bert-pissa": (tiny_bert, text, {"target_modules": ["query"], "init_lora_weights": "pissa", "r": 4}),
}
"""Name -> the network, an input for it, and the arguments of PEFT's LoraConfig."""


QUICK = {"bert-patterns", "bert-dora", "bert-bias-all", "llama-embedding", "grouped-convolution", "attention"}
"""Those of the fast lane."""

NOT_EXACT = {"bert-all-linear-rslora", "bert-patterns", "bert-dora", "bert-lora-bias"}
"""Scales that are no powers of two, DoRA and a bias on B round differently in float32: judged in float64."""

SVD_INITS = {"bert-olora", "bert-pissa"}
"""Both sides take the first factors out of the weight again, each by a decomposition of its own, in float32."""


def network(name):
    """The network of an entry, in the precision that it is judged in."""
    model = ZOO[name][0]()
    return model.double() if name in NOT_EXACT else model


def save_with_peft(name, folder):
    """An adapter with random values in every part of it, saved by PEFT; returns its output on the example."""
    from peft import LoraConfig, get_peft_model

    _, example, arguments = ZOO[name]
    model = get_peft_model(network(name), LoraConfig(**arguments))
    randomise(model)
    model.eval()
    model.save_pretrained(folder)
    return logits(model, example())


def randomise(model, seed=3):
    """Every trainable parameter and every running statistic that is saved moves, so that forgetting one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(noise * (0.02 if "magnitude" in name else 0.1))
        for name, buffer in model.named_buffers():
            if "modules_to_save" in name and buffer.is_floating_point():
                buffer.add_(torch.rand(buffer.shape, generator=generator))


def logits(model, example):
    with torch.no_grad():
        output = model(**example) if isinstance(example, dict) else model(example)
    return output if isinstance(output, torch.Tensor) else output.logits
