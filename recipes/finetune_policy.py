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

--batch rows are split among the processes, so any number of them takes the same steps. All other words are
TrainingArguments, in the file or after it; `--resume_from_checkpoint` goes on where a run was stopped.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from transformers import Trainer, TrainingArguments, set_seed

from hf_tl import LabelledRows, PolicyCallback, collate, find_classes, find_modality, load_classifier, load_task, score
from hf_tl.arguments import parse_arguments, share_batch


@dataclass
class Arguments:
    """What to train on what, and which layers."""

    model: str = field(metadata={"help": "Hub id or folder of a pre-trained network"})
    dataset: str = field(metadata={"help": "Hub id, folder or file of a labelled dataset"})
    policy: str = field(default="freeze: ..50%; lr: decay 0.8", metadata={"help": "see docs/policies.md"})
    batch: int = field(default=32, metadata={"help": "rows a step, of all processes together"})
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of the dataset"})
    label: str | None = field(default=None, metadata={"help": "label column, if it is not found"})
    image_size: int | None = field(default=None, metadata={"help": "side of the square images in pixels"})


def main() -> None:
    args, training = parse_arguments(Arguments, TrainingArguments)
    share_batch(training, args.batch)
    training.remove_unused_columns = False  # rows are raw inputs until they are in a batch
    set_seed(training.seed)
    task = load_task(args.dataset, modality=find_modality(args.model), label=args.label, config=args.dataset_config)
    classes = find_classes(task)
    network = load_classifier(args.model, classes, image_size=args.image_size)
    policy = PolicyCallback(args.policy, seed=training.seed)
    trainer = Trainer(
        network.model,
        training,
        train_dataset=LabelledRows(task.train, classes),
        eval_dataset=LabelledRows(task.test, classes),
        data_collator=collate(network),
        processing_class=network.processor,
        compute_metrics=score,
        callbacks=[policy],
    )
    if trainer.is_world_process_zero():
        print(policy.dry_run())
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    found = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        kept = {name: found[f"eval_{name}"] for name in ("accuracy", "cross_entropy")}
        kept["processes"] = training.world_size
        (Path(training.output_dir) / "results.json").write_text(json.dumps(kept, indent=1) + "\n")
        print("accuracy {accuracy:.4f}, cross entropy {cross_entropy:.4f}, {processes} process(es)".format(**kept))
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
