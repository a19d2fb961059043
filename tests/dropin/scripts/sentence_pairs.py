"""A script for sentence-transformers: sentences of one class are drawn together."""

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss


def main():
    model = SentenceTransformer("bert", device="cpu")
    pairs = [("the film was good", "a very good film"), ("a dull film", "the film was not fine")] * 12
    rows = Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [b for _, b in pairs]})
    # the trainer
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            "out", max_steps=4, per_device_train_batch_size=4, use_cpu=True, save_strategy="no"
        ),
        train_dataset=rows,
        eval_dataset=rows,
        loss=MultipleNegativesRankingLoss(model),
    )
    trainer.train()


if __name__ == "__main__":
    main()
