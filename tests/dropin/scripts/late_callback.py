"""A script that gives the Trainer its callbacks after it was built."""

from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments


class Count(TrainerCallback):
    """Counts steps."""

    steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1


def main():
    tokenizer = AutoTokenizer.from_pretrained("bert")
    rows = load_dataset("csv", data_files={"train": "train.csv", "validation": "validation.csv"})
    rows = rows.map(lambda row: {**tokenizer(row["sentence"]), "labels": row["label"]})
    rows = rows.remove_columns(["sentence", "label"])
    model = AutoModelForSequenceClassification.from_pretrained("bert")
    # the trainer
    trainer = Trainer(
        model,
        TrainingArguments("out", max_steps=4, per_device_train_batch_size=4, use_cpu=True),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
    )
    count = Count()
    trainer.add_callback(count)
    trainer.train()
    assert count.steps == 4


if __name__ == "__main__":
    main()
