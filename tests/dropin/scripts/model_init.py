"""A script whose Trainer makes its model itself, as a search over hyperparameters wants it."""

from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments


def main():
    tokenizer = AutoTokenizer.from_pretrained("bert")
    rows = load_dataset("csv", data_files={"train": "train.csv", "validation": "validation.csv"})
    rows = rows.map(lambda row: {**tokenizer(row["sentence"]), "labels": row["label"]})
    rows = rows.remove_columns(["sentence", "label"])

    def model_init():
        model = AutoModelForSequenceClassification.from_pretrained("bert")
        # the model is there
        return model

    trainer = Trainer(
        model_init=model_init,
        args=TrainingArguments("out", max_steps=4, per_device_train_batch_size=4, use_cpu=True),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
