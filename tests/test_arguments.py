"""The arguments of a training script, from the command line over a file."""

import pytest
from transformers import TrainingArguments

from hf_tl import InputError, parse_arguments, share_batch


def test_arguments_over_a_file(tmp_path):
    (tmp_path / "a.yaml").write_text("output_dir: out\nmax_steps: 3\nreport_to: [none]\n")
    (args,) = parse_arguments(TrainingArguments, arguments=[str(tmp_path / "a.yaml"), "--max_steps", "5"])
    assert (args.output_dir, args.max_steps) == ("out", 5)
    with pytest.raises(InputError, match="does not exist"):
        parse_arguments(TrainingArguments, arguments=["none.yaml"])
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(InputError, match="should hold names with values, got list"):
        parse_arguments(TrainingArguments, arguments=[str(tmp_path / "b.json")])
    (tmp_path / "c.yaml").write_text("a: [")
    with pytest.raises(InputError, match="neither YAML nor JSON"):
        parse_arguments(TrainingArguments, arguments=[str(tmp_path / "c.yaml")])


def test_a_batch_is_shared(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, gradient_accumulation_steps=2)
    share_batch(args, 16)
    assert args.per_device_train_batch_size == 8
    with pytest.raises(InputError, match=r"15 samples cannot be split evenly into 2 parts .* such as 16"):
        share_batch(args, 15)
