"""Seeded damage to an adapter's folder: every mutation makes it unusable, and says in words what it did."""

import json
import os
import pickle
import random
import struct

import torch
from safetensors.torch import load_file, save_file


TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def mutate(folder, seed):
    """Applies mutation number `seed` to a copy of a sound folder; returns what it was."""
    chance = random.Random(seed)
    kind = MUTATIONS[seed % len(MUTATIONS)]
    return f"{kind.__name__}: {kind(folder, chance)}"


def _header(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _write(path, header, body):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def _some_tensor(folder, chance, ending=""):
    tensors = load_file(folder / TENSORS)
    names = sorted(name for name in tensors if name.endswith(ending))
    return tensors, chance.choice(names)


# the file of tensors, as bytes


def truncated(folder, chance):
    data = (folder / TENSORS).read_bytes()
    size = chance.randrange(len(data))
    (folder / TENSORS).write_bytes(data[:size])
    return f"{size} of {len(data)} bytes"


def more_bytes(folder, chance):
    with (folder / TENSORS).open("ab") as file:
        file.write(bytes(chance.randrange(1, 100)))
    return "behind the end"


def bytes_of_noise(folder, chance):
    (folder / TENSORS).write_bytes(chance.randbytes(chance.choice([0, 1, 7, 8, 9, 1000])))
    return "instead of the file"


def header_length(folder, chance):
    data = (folder / TENSORS).read_bytes()
    length = chance.choice([0, 1, 2**63, 2**64 - 1, len(data), len(data) * 2, 10**8])
    (folder / TENSORS).write_bytes(struct.pack("<Q", length) + data[8:])
    return str(length)


def one_letter_of_the_header(folder, chance):
    """Of a name, a type, a shape or an offset: a change of white space would do no harm."""
    data = bytearray((folder / TENSORS).read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    start = data.index(b"base_model")
    place = chance.randrange(start, 8 + length)
    while chr(data[place]) in ' "{}[]:,' or data[place : place + 1] == b"" or _in_metadata(data, place):
        place = chance.randrange(start, 8 + length)
    old = data[place]
    data[place] = chance.choice([c for c in b"0123456789abcXYZ_.-" if c != old])
    (folder / TENSORS).write_bytes(data)
    return f"{chr(old)!r} became {chr(data[place])!r} at {place}"


def _in_metadata(data, place):
    start = data.find(b"__metadata__")
    return start != -1 and start <= place <= data.find(b"}", start)


def a_pickle(folder, chance):
    (folder / TENSORS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(str(folder / "exploded"))))
    return "instead of the tensors"


def a_pickle_under_the_good_name(folder, chance):
    (folder / TENSORS).write_bytes(pickle.dumps(Bomb(str(folder / "exploded"))))
    return "called safetensors"


class Bomb:
    """A pickle that leaves a trace when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def not_a_file(folder, chance):
    name = chance.choice([TENSORS, CONFIG])
    (folder / name).unlink()
    kind = chance.choice(["folder", "pipe", "nothing", "a link to nowhere", "a link to a device"])
    if kind == "folder":
        (folder / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "a link to nowhere":
        (folder / name).symlink_to(folder / "nowhere")
    elif kind == "a link to a device":
        (folder / name).symlink_to("/dev/zero")
    return f"{name} is {kind}"


# the header of the file of tensors


def another_type(folder, chance):
    header, body = _header(folder / TENSORS)
    name = chance.choice([name for name in header if "lora" in name])
    header[name]["dtype"] = chance.choice(["I32", "U32", "F16", "BF16", "F64", "F8_E4M3", "BOOL", "F31", "", None, 7])
    _write(folder / TENSORS, header, body)
    return f"{name} is {header[name]['dtype']}"


def absurd_shape(folder, chance):
    header, body = _header(folder / TENSORS)
    name = chance.choice([name for name in header if "lora" in name])
    shape = header[name]["shape"]
    header[name]["shape"] = chance.choice(
        [
            [],
            [0, *shape],
            [2**40, 2**40],
            [-1, *shape],
            [2**63],
            shape[::-1],
            [*shape, 1],
            [1, *shape],
            "4",
            [4.5],
            [None],
        ]
    )
    if header[name]["shape"] == shape:
        header[name]["shape"] = [1]
    _write(folder / TENSORS, header, body)
    return f"{name}: {shape} became {header[name]['shape']}"


def offsets(folder, chance):
    header, body = _header(folder / TENSORS)
    name = chance.choice([name for name in header if "lora" in name])
    start, stop = header[name]["data_offsets"]
    header[name]["data_offsets"] = chance.choice(
        [
            [start + 4, stop + 4],
            [stop, start],
            [-4, stop - start - 4],
            [0, 2**62],
            [start],
            [start, stop + 4],
            [2**64, 2**65],
        ]
    )
    _write(folder / TENSORS, header, body)
    return f"{name}: {header[name]['data_offsets']}"


def two_share_their_bytes(folder, chance):
    header, body = _header(folder / TENSORS)
    names = [name for name in header if name.endswith("lora_A.weight")]
    one, other = chance.sample(names, 2)
    header[one]["data_offsets"] = header[other]["data_offsets"]
    _write(folder / TENSORS, header, body)
    return f"{one} and {other}"


def many_tensors(folder, chance):
    header, body = _header(folder / TENSORS)
    for i in range(3000):
        header[f"base_model.model.x{i}.lora_A.weight"] = {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]}
    _write(folder / TENSORS, header, body)
    return "3000 empty ones more"


# the tensors


def not_finite(folder, chance):
    tensors, name = _some_tensor(folder, chance)
    value = chance.choice([float("nan"), float("inf"), float("-inf")])
    tensors[name].view(-1)[chance.randrange(tensors[name].numel())] = value
    save_file(tensors, folder / TENSORS)
    return f"{value} in {name}"


def one_is_missing(folder, chance):
    tensors, name = _some_tensor(folder, chance)
    del tensors[name]
    save_file(tensors, folder / TENSORS)
    return name


def a_layer_is_missing(folder, chance):
    tensors, name = _some_tensor(folder, chance, "lora_A.weight")
    layer = name.removesuffix("lora_A.weight")
    save_file({key: value for key, value in tensors.items() if not key.startswith(layer)}, folder / TENSORS)
    return layer


def one_too_many(folder, chance):
    tensors = load_file(folder / TENSORS)
    extra = chance.choice(
        [
            "base_model.model.nowhere.lora_A.weight",
            "base_model.model.bert.pooler.dense.weight",
            "../../etc/passwd",
            "base_model.model.__class__.__init__",
            "base_model.model..lora_A.weight",
            "lora_A.weight",
            "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.default.weight",
            "base_model.model." + "x" * 2000,
            "\x1b[2J",
            "base_model.model.bert.encoder.layer.0.attention.self.query.lora_C.weight",
        ]
    )
    tensors[extra] = torch.ones(4, 32)
    save_file(tensors, folder / TENSORS)
    return repr(extra)[:60]


def another_name(folder, chance):
    tensors, name = _some_tensor(folder, chance)
    old, new = chance.choice(
        [("layer.", "layers."), ("base_model.model.", "base_model."), ("weight", "wieght"), ("bert", "bart")]
    )
    wrong = name.replace(old, new) if old in name else f"{name}2"
    tensors[wrong] = tensors.pop(name)
    save_file(tensors, folder / TENSORS)
    return wrong


def another_shape(folder, chance):
    tensors, name = _some_tensor(folder, chance)
    value = tensors[name]
    changes = [
        value[:-1],
        value.repeat(2, *[1] * (value.ndim - 1)),
        value[..., :-1],
        value.unsqueeze(0),
        value.reshape(-1, 1),
    ]
    tensors[name] = chance.choice([c for c in changes if c.shape != value.shape]).contiguous()
    save_file(tensors, folder / TENSORS)
    return f"{name}: {tuple(value.shape)} became {tuple(tensors[name].shape)}"


def whole_numbers(folder, chance):
    tensors, name = _some_tensor(folder, chance)
    tensors[name] = tensors[name].to(chance.choice([torch.int8, torch.int64, torch.uint8, torch.bool, torch.int32]))
    save_file(tensors, folder / TENSORS)
    return f"{name} is {tensors[name].dtype}"


def of_another_rank(folder, chance):
    tensors, name = _some_tensor(folder, chance, "lora_A.weight")
    partner = name.replace("lora_A", "lora_B")
    tensors[name], tensors[partner] = tensors[name][:-1].contiguous(), tensors[partner][:, :-1].contiguous()
    save_file(tensors, folder / TENSORS)
    return f"{name}, its pair and no word in the configuration"


# the configuration


def broken_json(folder, chance):
    text = (folder / CONFIG).read_text()
    new = chance.choice(
        [
            text[: chance.randrange(1, len(text) - 2)],
            "",
            "null",
            "[]",
            '"LORA"',
            "[" * 100_000,
            '{"a":' * 50_000,
            text.replace('"r": 4', '"r": NaN'),
            text.replace('"r": 4', '"r": 4, "r": 5'),
            "\x00" + text,
            text + text,
            "import os; os.system('true')",
        ]
    )
    (folder / CONFIG).write_text(new)
    return repr(new[:40])


def not_text(folder, chance):
    (folder / CONFIG).write_bytes(b"\xff\xfe" + chance.randbytes(40))
    return "bytes"


def _change(folder, **changes):
    config = json.loads((folder / CONFIG).read_text())
    for name, value in changes.items():
        if value is ...:
            config.pop(name)
        else:
            config[name] = value
    (folder / CONFIG).write_text(json.dumps(config))
    return ", ".join(f"{name}={str(value)[:60]}" for name, value in changes.items())


def another_method(folder, chance):
    return _change(folder, peft_type=chance.choice([..., None, "IA3", "lora", "ADALORA", "OFT", 4, ["LORA"], {}]))


def option_of_another_kind(folder, chance):
    wrong = {
        "r": ["4", 4.0, 0, -1, None, True, 10**30, [4], {"default": 4}, 5, 3],
        "lora_alpha": ["8", None, True, [8], 10**40],
        "lora_dropout": [1.0, -0.1, 2, "0.1", None],
        "target_modules": [4, {"query": 1}, [4], True],
        "modules_to_save": ["classifier", [1], 3, {}, True, ["pooler"], []],
        "bias": ["some", None, 1, [], True],
        "use_rslora": ["yes", 1, None, "false"],
        "use_dora": [True, 1, "no", None],
        "lora_bias": [True, 0, None],
        "fan_in_fan_out": ["x", 1],
        "rank_pattern": [[], 4, {"query": "4"}, {"query": 0}, {"query": 5}, {"query": True}],
        "alpha_pattern": [[], {"query": None}, {"query": "8"}, {"query": []}, 3],
        "init_lora_weights": ["loftq", "corda", "pissa_niter_x", 3, None, [], "os.system", "lora_ga"],
        "base_model_name_or_path": [4, ["x"], True],
        "layers_to_transform": ["1", 1.5, [1.5], {}],
    }
    name = chance.choice(sorted(wrong))
    return _change(folder, **{name: chance.choice(wrong[name])})


def infinite_alpha(folder, chance):
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(
        text.replace('"lora_alpha": 8', f'"lora_alpha": {chance.choice(["1e999", "-1e999", "Infinity"])}')
    )
    return "in the text"


def pattern_that_never_ends(folder, chance):
    pattern = chance.choice(["(.|.)*[A-Z]", r"([a-z]|\w|.)*[A-Z]", "(" * 500, "[", "*"])
    return _change(folder, **{chance.choice(["rank_pattern", "alpha_pattern"]): {pattern: 4}})


def option_not_spoken(folder, chance):
    options = {
        "use_qalora": True,
        "layer_replication": [[0, 1], [0, 1]],
        "megatron_config": {"a": 1},
        "alora_invocation_tokens": [3],
        "velora_config": {"a": 1},
        "use_bdlora": {"a": 1},
        "arrow_config": {"a": 1},
        "kasa_config": {"a": 1},
        "ensure_weight_tying": True,
        "use_something_of_2031": "yes",
        "auto_mapping": "os",
    }
    name = chance.choice(sorted(options))
    return _change(folder, **{name: options[name]})


MUTATIONS = [
    truncated,
    more_bytes,
    bytes_of_noise,
    header_length,
    one_letter_of_the_header,
    a_pickle,
    a_pickle_under_the_good_name,
    not_a_file,
    another_type,
    absurd_shape,
    offsets,
    two_share_their_bytes,
    many_tensors,
    not_finite,
    one_is_missing,
    a_layer_is_missing,
    one_too_many,
    another_name,
    another_shape,
    whole_numbers,
    of_another_rank,
    broken_json,
    not_text,
    another_method,
    option_of_another_kind,
    infinite_alpha,
    pattern_that_never_ends,
    option_not_spoken,
]
