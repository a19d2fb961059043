"""A script with a Trainer of its own: class weights in compute_loss."""

import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments


class WeightedTrainer(Trainer):
    """Rows of the second class count twice."""

    def compute_loss(self, model, inputs, return_outputs=False, **options):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        weight = torch.tensor([1.0, 2.0], device=labels.device)
        loss = torch.nn.functional.cross_entropy(outputs.logits, labels, weight=weight)
        return (loss, outputs) if return_outputs else loss


def main():
    tokenizer = AutoTokenizer.from_pretrained("bert")
    rows = load_dataset("csv", data_files={"train": "train.csv", "validation": "validation.csv"})
    rows = rows.map(lambda row: {**tokenizer(row["sentence"]), "labels": row["label"]})
    rows = rows.remove_columns(["sentence", "label"])
    model = AutoModelForSequenceClassification.from_pretrained("bert")
    # the trainer
    trainer = WeightedTrainer(
        model=model,
        args=TrainingArguments("out", max_steps=4, per_device_train_batch_size=4, use_cpu=True, eval_strategy="epoch"),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
