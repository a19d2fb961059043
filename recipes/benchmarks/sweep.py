"""Small networks of every kind that transformers and timm know, with random weights: what the sweeps run over.

python recipes/benchmarks/sweep.py  # the families, how many of them can be built small, and why the others cannot
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import multiprocessing
import random
import re
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from machine import keep
from torch import nn

from hf_tl.example import dummy_batch
from hf_tl.table import format_table
from hf_tl.trace import forward


TASKS = {
    "image": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "sequence": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "token": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "audio": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
}
FAMILIES = (*TASKS, "timm")
N_LABELS = 5
LARGEST = 20_000_000  # parameters: what needs more cannot be built small
SECONDS = 60  # of the processor's time, for one network
GIGABYTES = 6  # of memory, for one network

WORDS = 128  # of the vocabulary
WIDTHS = {  # a setting -> what it becomes in a small network, where the configuration has it and it is larger
    "attention_head_dim": 16,
    "attention_hidden_size": 32,
    "class_expand": 32,
    "codevector_dim": 8,
    "d_ff": 64,
    "d_head": 8,
    "d_inner": 64,
    "d_kv": 8,
    "d_latents": 32,
    "d_model": 32,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "decoder_layers": 2,
    "dim": 32,
    "dim_ff": 64,
    "embed_dim": 32,
    "embedding_size": 32,
    "emb_dim": 32,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "encoder_layers": 2,
    "expert_ffn_hidden_size": 32,
    "ffn_dim": 64,
    "ffn_hidden_size": 64,
    "hidden_dim": 64,
    "hidden_size": 32,
    "hidden_size_global": 32,
    "hidden_size_per_layer_input": 8,
    "index_head_dim": 8,
    "index_n_heads": 4,
    "inner_dim": 64,
    "intermediate_size": 64,
    "kv_channels": 8,
    "kv_lora_rank": 8,
    "linear_head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_num_heads": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 8,
    "lru_width": 32,
    "mamba_d_head": 8,
    "mamba_n_heads": 8,
    "moe_intermediate_size": 32,
    "moe_num_experts": 4,
    "moe_num_shared_experts": 1,
    "n_embd": 32,
    "n_ctx": 64,
    "n_head": 4,
    "n_heads": 4,
    "n_layer": 2,
    "n_layers": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_attention_heads": 4,
    "num_conv_pos_embedding_groups": 4,
    "num_conv_pos_embeddings": 8,
    "num_cross_attention_heads": 4,
    "num_decoder_layers": 2,
    "num_experts": 4,
    "num_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_latents": 8,
    "num_layers": 2,
    "num_local_experts": 4,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 4,
    "output_hidden_size": 32,
    "pooler_hidden_size": 32,
    "prediction_head_size": 32,
    "projection_dim": 32,
    "projection_size": 32,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "shared_expert_intermediate_size": 32,
    "swa_head_dim": 8,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "v_head_dim": 8,
    "vocab_size_per_layer_input": WORDS,
    "xvector_output_dim": 32,
}
WIDTH_LISTS = (  # settings of a stage each, to be divided alike
    "embed_dims",
    "hidden_sizes",
    "embed_dim",
    "dims",
    "encoder_hidden_sizes",
    "stage_in_channels",
    "stage_mid_channels",
    "stage_out_channels",
    "stem_channels",
)
DEPTH_LISTS = ("depths", "num_block_repeats", "stage_num_blocks", "stage_numb_of_layers", "n_attn_blocks", "depth")
CHOICES = {  # a setting that counts experts: at most
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
    "num_kv_shared_layers": 0,
    "index_topk": 4,
    "sliding_window": 16,
    "vocab_size": WORDS,
    "image_size": 64,
}
GIVEN: dict[str, dict[str, Any]] = {  # what a configuration insists on besides, by its class
    "BambaConfig": {"attn_layer_indices": [1]},
    "BitConfig": {"num_groups": 4},
    "BltConfig": {"encoder_hash_byte_group_vocab": 64},
    "BrosConfig": {"hidden_size": 64},
    "Gemma3Config": {"mm_tokens_per_image": 4},
    "ShieldGemma2Config": {"mm_tokens_per_image": 4, "yes_token_index": 3, "no_token_index": 4},
    "DonutSwinConfig": {"num_heads": [2, 2, 4, 4], "image_size": 64, "window_size": 2},
    "EfficientNetConfig": {"width_coefficient": 0.25, "depth_coefficient": 1.0, "hidden_dim": 320},
    "CodeGenConfig": {"rotary_dim": 8},
    "DeepseekV2Config": {"num_experts_per_tok": 2, "topk_method": "greedy"},
    "Dots1Config": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "EsmConfig": {"vocab_size": WORDS},
    "GPTJConfig": {"rotary_dim": 8},
    "GraniteMoeHybridConfig": {"layer_types": ["linear_attention", "full_attention"]},
    "HGNetV2Config": {
        "stem_channels": [3, 16, 16],
        "stage_in_channels": [16, 24, 32, 48],
        "stage_mid_channels": [8, 8, 16, 16],
        "stage_out_channels": [24, 32, 48, 64],
        "hidden_sizes": [24, 32, 48, 64],
    },
    "HunYuanDenseV1Config": {"head_dim": 8},
    "HunYuanMoEV1Config": {"head_dim": 8},
    "JambaConfig": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "LayoutLMv3Config": {"coordinate_size": 5, "shape_size": 6, "input_size": 64},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"]},
    "LiltConfig": {"hidden_size": 48},
    "LukeConfig": {"entity_vocab_size": 32},
    "Mamba2Config": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "MinistralConfig": {"head_dim": 8, "num_key_value_heads": 2},
    "MusicgenDecoderConfig": {"num_codebooks": 2},
    "MusicgenMelodyDecoderConfig": {"num_codebooks": 2},
    "NemotronConfig": {"head_dim": 8, "num_key_value_heads": 2},
    "NemotronHConfig": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]},
    "PerceiverConfig": {"num_cross_attention_heads": 1},
    "ReformerConfig": {"is_decoder": True, "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16]},
    "RecurrentGemmaConfig": {"num_hidden_layers": 3},
    "SwinConfig": {"num_heads": [2, 2, 4, 4], "image_size": 64, "window_size": 2},
    "Swinv2Config": {"num_heads": [2, 2, 4, 4]},
    "TextNetConfig": {"stem_out_channels": 16},
    "TimmWrapperConfig": {"architecture": "resnet18"},
    "XmodConfig": {"default_language": "en_XX"},
    "Zamba2Config": {"attention_hidden_size": 64, "attention_head_dim": 16},
    "ZambaConfig": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
}
NARROWER: dict[str, dict[str, Any]] = {  # by the beginning of the name, of the largest networks of timm
    "beit": {"depth": 4},
    "csatv2": {"dims": (16, 32, 48, 64)},
    "deepseek_vit": {"depth": 2},
    "gemma4_vit": {"depth": 2},
    "mobilenetv5": {"channel_multiplier": 0.25},
    "naflexvit": {"depth": 4},
    "qwen3_vit": {"depth": 2},
    "vgg": {"mlp_ratio": 1 / 64},  # its first fully connected layer has 100 million parameters
}
IMAGE_SIDES = (64, 96, None)
LARGER = {"hidden_size": 64, "intermediate_size": 128, "d_model": 64, "n_embd": 64}  # what some rotations ask for


@dataclass(frozen=True)
class Specimen:
    """A network that can be built small.

    Attributes:
        family: one of FAMILIES.
        name: a class of transformers, or a model of timm.
        build: makes it in training mode, with random weights of the global generator.
    """

    family: str
    name: str
    build: Callable[[], nn.Module] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.family}/{self.name}"

    def model(self, *, seed: int = 0) -> nn.Module:
        """The network in evaluation mode, the same at every call with one `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build().eval()


def specimens(families: Sequence[str] = FAMILIES) -> list[Specimen]:
    """Every candidate of these families, sorted by name; some cannot be built: `Specimen.model` raises."""
    return [one for family in families for one in (_of_timm() if family == "timm" else _of_transformers(family))]


def sample(n: int, *, families: Sequence[str] = FAMILIES, random_state: int = 0) -> list[Specimen]:
    """`n` of them at random, the same at every call."""
    return random.Random(random_state).sample(specimens(families), n)


def sweep(
    examine: Callable[[Specimen], dict[str, Any]], chosen: Sequence[Specimen], *, ledger: Path | None = None
) -> dict[str, dict[str, Any]]:
    """What `examine` finds of each network, by the network's name.

    Each is examined in a process of its own, within SECONDS and GIGABYTES; one that takes more is {"outcome":
    "not run"}. What is found is printed and kept in `ledger`, JSON lines: what is cut short goes on from there.
    """
    torch.set_num_threads(1)  # a forked process has no others
    examine(next(one for one in specimens(["token"]) if one.name == "BertForTokenClassification"))  # imports, once
    lines = ledger.read_text().splitlines() if ledger is not None and ledger.is_file() else []
    found = {item["name"]: item for item in map(json.loads, lines)}
    for specimen in chosen:
        if str(specimen) in found:
            continue
        item = {"name": str(specimen), **_in_a_process(examine, specimen)}
        found[str(specimen)] = item
        print(f"{specimen}: {item['outcome']}", *item.get("sentences", ()), sep="\n    ", flush=True)
        if ledger is not None:
            with ledger.open("a") as file:
                file.write(json.dumps(item) + "\n")
    return {str(specimen): found[str(specimen)] for specimen in chosen}


def count(items: Sequence[Mapping[str, Any]], outcomes: Sequence[str]) -> dict[str, list[int]]:
    """How often each outcome was found in each family, and in "all"."""
    found = [(item["name"].partition("/")[0], item["outcome"]) for item in items]
    families = [family for family in FAMILIES if family in dict(found)]
    counts = {family: [found.count((family, outcome)) for outcome in outcomes] for family in families}
    return counts | {"all": [sum(column) for column in zip(*counts.values(), strict=True)]}


def run_sweep(examine: Callable[[Specimen], Any], outcomes: Sequence[str], *, name: str, doc: str) -> int:
    """The command line of a sweep: prints how often each outcome was found, and keeps it of whole families.

    Args:
        examine: a network -> a dataclass with an "outcome" and "sentences".
        outcomes: that there are; "right" and "wrong" among them.
        name: of the file in results/.
        doc: what --help says.

    Returns:
        The exit code: 1 where something was wrong.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="networks of these names")
    parser.add_argument("--sample", type=int, metavar="N", help="that many at random, the same at every call")
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="where what was found so far is kept")
    options = parser.parse_args()
    import transformers

    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    chosen = sample(options.sample, families=options.families) if options.sample else specimens(options.families)
    if options.only:
        chosen = [specimen for specimen in chosen if specimen.name in options.only]
    items = list(sweep(lambda specimen: asdict(examine(specimen)), chosen, ledger=options.ledger).values())
    counts = count(items, outcomes)
    print(format_table(["family", *outcomes], [[family, *numbers] for family, numbers in counts.items()]))
    if not options.only and not options.sample:
        told = [item for item in items if item["outcome"] != "right"]
        keep(name, {"outcomes": outcomes, "counts": counts, "not right": told})
    return int(any(item["outcome"] == "wrong" for item in items))


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in the main thread when a block takes more of the processor's time."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _in_a_process(examine: Callable[[Specimen], dict[str, Any]], specimen: Specimen) -> dict[str, Any]:
    """What a forked process finds; it is killed where it hangs in code that no signal reaches."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(examine, specimen, sender), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(10 * SECONDS):
            return {"outcome": "not run", "sentences": [f"longer than {10 * SECONDS} s"]}
        return receiver.recv()
    except EOFError:
        process.join()
        return {"outcome": "not run", "sentences": [f"its process ended with {process.exitcode}"]}
    finally:
        process.kill()
        process.join()


def _send(examine: Callable[[Specimen], dict[str, Any]], specimen: Specimen, sender: Connection) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + GIGABYTES * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        with time_limit(SECONDS):
            found = examine(specimen)
    except TimeoutError as error:
        found = {"outcome": "not run", "sentences": [str(error)]}
    if re.search("allocate memory|MemoryError", str(found)):
        found = {"outcome": "not run", "sentences": [f"more than {GIGABYTES} GiB of memory"]}
    elif f"longer than {SECONDS} s" in str(found):  # where what was examined took it for an error of its own
        found = {"outcome": "not run", "sentences": [f"longer than {SECONDS} s"]}
    sender.send(found)


def _of_transformers(family: str) -> list[Specimen]:
    from transformers.models.auto import modeling_auto

    names: set[str] = set()
    for entry in getattr(modeling_auto, TASKS[family]).values():
        names.update([entry] if isinstance(entry, str) else entry)
    return [Specimen(family, name, lambda name=name: _build(name)) for name in sorted(names)]


def _of_timm() -> list[Specimen]:
    """The smallest model of each of timm's files, going by its name."""
    import timm

    small = ("atto", "femto", "pico", "nano", "xxs", "_xs", "tiny", "zepto", "small", "_s", "_050", "18", "_t", "_b0")
    chosen = []
    for module in timm.list_modules():
        names = timm.list_models(module=module)
        if names:
            hints = {name: next((i for i, hint in enumerate(small) if hint in name), len(small)) for name in names}
            chosen.append(min(names, key=lambda name: (hints[name], len(name), name)))
    return [Specimen("timm", name, lambda name=name: _build_of_timm(name)) for name in sorted(chosen)]


def _build_of_timm(name: str) -> nn.Module:
    """A model of timm at the first size of images that it can read."""
    import timm

    narrow = next((options for family, options in NARROWER.items() if name.startswith(family)), {})
    config = timm.get_pretrained_cfg(name)
    for side in IMAGE_SIDES:
        small: dict[str, Any] = {} if side is None else {"pretrained_cfg_overlay": {"input_size": (3, side, side)}}
        if side is not None and config is not None and config.fixed_input_size:
            small["img_size"] = side
        try:
            model = timm.create_model(name, num_classes=N_LABELS, **narrow, **small)
            with torch.no_grad():
                forward(model.eval(), dummy_batch(model, n=1))
            return model.train()
        except Exception:  # whatever it objects to
            if side is None:
                raise
    raise AssertionError("the last size is the network's own")


def _build(name: str) -> nn.Module:
    """A class of transformers at the first size that can be built."""
    import transformers

    cls = getattr(transformers, name)
    problems = []
    for size in (WIDTHS, WIDTHS | LARGER, {}):
        try:
            config = cls.config_class(**_shrunk(cls.config_class, size))
            with torch.device("meta"):
                n_parameters = sum(p.numel() for p in cls(config).parameters())
            if n_parameters > LARGEST:
                raise ValueError(f"{n_parameters:,} parameters")
            return cls(cls.config_class(**_shrunk(cls.config_class, size)))
        except TimeoutError:
            raise
        except Exception as error:  # whatever a configuration objects to; the next size may do
            problems.append(f"{type(error).__name__}: {error}".replace("\n", " "))
    raise ValueError(problems[0])


def _shrunk(config_class: type, size: Mapping[str, int]) -> dict[str, Any]:
    """The arguments of a configuration whose network is small."""
    from transformers import PreTrainedConfig

    default = config_class()
    arguments: dict[str, Any] = {"num_labels": N_LABELS}
    for key, value in vars(default).items():
        if isinstance(value, PreTrainedConfig):
            arguments[key] = _shrunk(type(value), size)
        elif key == "pad_token_id" and value is None:
            arguments[key] = WORDS - 1  # which a classifier of texts insists on
        elif isinstance(value, bool) or key.startswith("_"):
            continue
        elif isinstance(value, int):
            limit = size.get(key, CHOICES.get(key))
            if key == "num_key_value_heads" and value == getattr(default, "num_attention_heads", None):
                limit = size.get("num_attention_heads")
            if key == "head_dim":
                limit = 8 if "head_dim" in inspect.signature(config_class).parameters and size else None
            if key.endswith(("token_id", "token_index")):
                limit = 1 + sum(map(ord, key)) % (WORDS // 4)
            if limit is not None and value > limit:
                arguments[key] = limit
        elif isinstance(value, (list, tuple)) and value and size:
            shorter = _shorter(key, value, default, size)
            if shorter is not None:
                arguments[key] = type(value)(shorter)
    return arguments | (GIVEN.get(config_class.__name__, {}) if size else {})


def _shorter(key: str, values: Sequence, default: Any, size: Mapping[str, int]) -> Any:
    """A setting of one value a layer or a stage, for a small network; None where it stays."""
    if key in DEPTH_LISTS:
        return [min(int(value), 2) for value in values] if all(isinstance(v, int) for v in values) else None
    if key in WIDTH_LISTS and all(isinstance(value, int) for value in values):
        factor = max(1, min(values) // 16)
        return [max(8, value // factor // 8 * 8) if value > 8 else value for value in values]
    n_layers = getattr(default, "num_hidden_layers", None)
    if n_layers and len(values) == n_layers and re.search("layer|type|indexer|pattern", key):
        kinds = sorted(set(map(str, values)), key=[str(value) for value in values].index)
        n = size.get("num_hidden_layers", n_layers)
        picked = [next(v for v in values if str(v) == kind) for kind in kinds][:n]
        return picked + [picked[-1]] * (n - len(picked))
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--show", action="store_true", help="print each network with its parameters")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    for family in args.families:
        built, refused = 0, []
        for specimen in specimens([family]):
            try:
                with time_limit(SECONDS):
                    model = specimen.model()
            except Exception as error:
                refused.append(f"  {specimen.name}: {str(error)[:160]}")
                continue
            built += 1
            if args.show:
                print(f"  {specimen.name}: {sum(p.numel() for p in model.parameters()):,}", flush=True)
        print(f"{family}: {built} built, {len(refused)} not", *refused, sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
