"""A script for TRL's supervised fine-tuning of a language model."""

from datasets import load_dataset
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, set_seed
from trl import SFTConfig, SFTTrainer


def main():
    set_seed(0)  # every process starts from the same network
    tokenizer = AutoTokenizer.from_pretrained("bert")
    tokenizer.eos_token = "[SEP]"
    rows = load_dataset("csv", data_files={"train": "train.csv", "validation": "validation.csv"})
    rows = rows.remove_columns("label").rename_column("sentence", "text")
    sizes = {"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 32, "vocab_size": len(tokenizer)}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=2, eos_token_id=3))
    settings = {"max_steps": 4, "per_device_train_batch_size": 4, "use_cpu": True, "max_length": 16}
    # the trainer
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig("out", bf16=False, gradient_checkpointing=False, **settings),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
