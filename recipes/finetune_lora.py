"""Train a low-rank adapter of a pre-trained network: image (transformers, timm), text or audio.

    python recipes/finetune_lora.py recipes/configs/finetune_lora_text.yaml
    python recipes/finetune_lora.py recipes/configs/finetune_lora_audio.yaml --r 16 --use_dora true
    accelerate launch --num_processes 4 recipes/finetune_lora.py recipes/configs/finetune_lora_text.yaml   # four GPUs

Two processes on a CPU (`accelerate launch --cpu --num_processes 2` would start one):

    ACCELERATE_USE_CPU=true accelerate launch --config_file recipes/configs/two_processes_cpu.yaml \\
        recipes/finetune_lora.py recipes/configs/finetune_lora_text.yaml --use_cpu

A base that no GPU holds is spread over them by FSDP2:

    accelerate launch --config_file recipes/configs/fsdp2.yaml \\
        recipes/finetune_lora.py recipes/configs/finetune_lora_text.yaml

fsdp2_large.yaml loads it once, keeps it in the memory of the processor and computes activations again; zero2.yaml is
for DeepSpeed's ZeRO-2.

--output_dir receives the adapter alone, in PEFT's format, and checkpoints hold nothing else. --batch samples are split
among the processes, so any number of them takes the same steps. docs/large-models.md says more.

Afterwards: `load_adapter(model, "runs/lora")`, `PeftModel.from_pretrained(model, "runs/lora")`.
"""

import os
from dataclasses import dataclass, field

from transformers import Trainer, TrainingArguments, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_tl import (
    DataCollator,
    InputError,
    LoraConfig,
    TaskArguments,
    TaskDataset,
    accelerate_training,
    add_lora,
    compute_accuracy,
    find_classes,
    find_modality,
    load_network,
    load_task,
    parse_arguments,
    run_trainer,
    share_batch,
)
from hf_tl.training import uses_fsdp


@dataclass
class Arguments(TaskArguments):
    """What to train on what, and how small."""

    r: int = field(default=8, metadata={"help": "rank of the update"})
    lora_alpha: float | None = field(default=None, metadata={"help": "its scale times r; 2 r by default"})
    lora_dropout: float = field(default=0.0, metadata={"help": "on the inputs of the update"})
    use_dora: bool = field(default=False, metadata={"help": "whether norms are learnt apart from directions"})
    target_modules: list[str] | None = field(default=None, metadata={"help": "names, or all-linear; else found"})


def check_launch(training: TrainingArguments) -> None:
    """Raises InputError for a way of sharding with which no adapter would be saved, before anything is loaded."""
    if is_deepspeed_zero3_enabled():
        raise InputError(
            "ZeRO-3 partitions the network as it is loaded, before it has an adapter; launch with FSDP2 "
            "(recipes/configs/fsdp2.yaml) or ZeRO-2"
        )
    if not uses_fsdp(training):
        return
    launched = {
        "version": os.environ.get("FSDP_VERSION", "1"),
        "state_dict_type": os.environ.get("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT"),
    }
    config = training.fsdp_config if training.fsdp else launched
    version, kind = int(config.get("version", 2)), config.get("state_dict_type", "FULL_STATE_DICT")
    if version != 2 or kind != "FULL_STATE_DICT":
        raise InputError(
            "FSDP saves an adapter whole with fsdp_version: 2 and fsdp_state_dict_type: FULL_STATE_DICT, got "
            f"{version} and {kind}; see recipes/configs/fsdp2.yaml"
        )


def main() -> None:
    args, training = parse_arguments(Arguments, TrainingArguments)
    check_launch(training)
    share_batch(training, args.batch)
    training.remove_unused_columns = False  # samples are raw inputs until they are in a batch
    set_seed(training.seed)
    task = load_task(args.dataset, modality=find_modality(args.model), label=args.label, config=args.dataset_config)
    classes = find_classes(task)
    network = load_network(args.model, classes=classes, image_size=args.image_size)
    targets = args.target_modules
    config = LoraConfig(
        r=args.r,
        lora_alpha=args.lora_alpha or 2 * args.r,
        lora_dropout=args.lora_dropout,
        use_dora=args.use_dora,
        target_modules=targets[0] if targets is not None and len(targets) == 1 else targets,
    )
    model = add_lora(network.model, config)
    train, collator = TaskDataset(task.train, classes), DataCollator(network)
    accelerated = accelerate_training(model, training, train, collator) if args.accelerate_training else ""
    trainer = Trainer(
        model,
        training,
        train_dataset=train,
        eval_dataset=TaskDataset(task.test, classes),
        data_collator=collator,
        processing_class=network.processor,
        compute_metrics=compute_accuracy,
    )
    if trainer.is_world_process_zero():
        trained = sum(p.numel() for p in network.model.parameters() if p.requires_grad)
        share = trained / sum(p.numel() for p in network.model.parameters())
        print(f"{trained} parameters trained, {share:.2%} of the network", accelerated, sep="\n")
    run_trainer(trainer)


if __name__ == "__main__":
    main()
