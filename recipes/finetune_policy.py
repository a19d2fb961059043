"""Fine-tune a pre-trained network under a policy, layer by layer: image (transformers, timm), text or audio.

    python recipes/finetune_policy.py recipes/configs/finetune_policy_image.yaml
    python recipes/finetune_policy.py recipes/configs/finetune_policy_text.yaml --policy "freeze: ..75%; lr: decay 0.9"
    accelerate launch --num_processes 4 recipes/finetune_policy.py recipes/configs/finetune_policy_image.yaml   # GPUs

Two processes on a CPU (`accelerate launch --cpu --num_processes 2` would start one):

    ACCELERATE_USE_CPU=true accelerate launch --config_file recipes/configs/two_processes_cpu.yaml \\
        recipes/finetune_policy.py recipes/configs/finetune_policy_text.yaml --use_cpu

A network too large for one GPU, sharded; for policies of one phase without "lr", others are refused with the reason:

    accelerate launch --config_file recipes/configs/fsdp2.yaml recipes/finetune_policy.py \\
        recipes/configs/finetune_policy_text.yaml --policy "freeze: ..50%"

--batch samples are split among the processes, so any number of them takes the same steps. All other words are
TrainingArguments, in the file or after it; `--resume_from_checkpoint` resumes a run.
"""

from dataclasses import dataclass, field

from transformers import Trainer, TrainingArguments, set_seed

from hf_tl import (
    DataCollator,
    PolicyCallback,
    TaskArguments,
    TaskDataset,
    accelerate_training,
    compute_accuracy,
    find_classes,
    find_modality,
    load_network,
    load_task,
    parse_arguments,
    run_trainer,
    share_batch,
)


@dataclass
class Arguments(TaskArguments):
    """What to train on what, and which layers."""

    policy: str = field(default="freeze: ..50%; lr: decay 0.8", metadata={"help": "see docs/policies.md"})


def main() -> None:
    args, training = parse_arguments(Arguments, TrainingArguments)
    share_batch(training, args.batch)
    training.remove_unused_columns = False  # samples are raw inputs until they are in a batch
    set_seed(training.seed)
    task = load_task(args.dataset, modality=find_modality(args.model), label=args.label, config=args.dataset_config)
    classes = find_classes(task)
    network = load_network(args.model, classes=classes, image_size=args.image_size)
    policy = PolicyCallback(args.policy, seed=training.seed)
    train, collator = TaskDataset(task.train, classes), DataCollator(network)
    accelerated = accelerate_training(network.model, training, train, collator) if args.accelerate_training else ""
    trainer = Trainer(
        network.model,
        training,
        train_dataset=train,
        eval_dataset=TaskDataset(task.test, classes),
        data_collator=collator,
        processing_class=network.processor,
        compute_metrics=compute_accuracy,
        callbacks=[policy],
    )
    if trainer.is_world_process_zero():
        print(policy.dry_run(), accelerated, sep="\n")
    run_trainer(trainer)


if __name__ == "__main__":
    main()
