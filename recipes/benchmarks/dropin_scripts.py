"""The scripts of the drop-in matrix: how each is started on small things, and which two lines it is given.

The official ones are not in this repository: `dropin_matrix.py` takes them from checkouts of transformers and
accelerate. Those of tests/dropin/scripts are this project's own, for the shapes that the official ones do not have.
"""

import difflib
from dataclasses import dataclass, field


PILLARS = ("policy", "lora", "embedding")
IMPORTS = {
    "policy": "from hf_tl import PolicyCallback",
    "loop policy": "from hf_tl import Policy",
    "lora": "from hf_tl import LoraConfig, add_lora",
    "embedding": "from hf_tl import EmbeddingCallback",
}
FREEZE = '"freeze: ..50%"'
EACH = '"freeze: each ..50%"'  # of each tower
CALLBACK = f"callbacks=[PolicyCallback({FREEZE})],"
APPLY = f"Policy({FREEZE}).apply(model)"
LORA = "model = add_lora(model, LoraConfig(r=4))"
WATCH = "trainer.add_callback(EmbeddingCallback.from_trainer(trainer))"
MEASURE = "EmbeddingCallback.from_loaders(train_dataloader, eval_dataloader).measure(model)"
TRAINER = {"--do_train": "", "--do_eval": "", "--use_cpu": "", "--report_to": "none", "--max_steps": "4"}
BATCH = {"--per_device_train_batch_size": "4", "--output_dir": "out", "--seed": "3"}
TEXT = {"--model_name_or_path": "bert", "--train_file": "train.csv", "--validation_file": "validation.csv"}
FOLDERS = {"--train_dir": "images/train", "--validation_dir": "images/validation"}
LOOP = {"--max_train_steps": "4", "--checkpointing_steps": "epoch"}


@dataclass(frozen=True)
class Place:
    """Where a line goes.

    Attributes:
        line: the line, without its indentation.
        at: the start of the line of the script beside which it goes, with its indentation, which the new line takes.
        after: whether it goes behind that line.
        kind: which import it needs, where that is not the pillar's usual one.
    """

    line: str
    at: str
    after: bool = False
    kind: str | None = None


@dataclass(frozen=True)
class Script:
    """One script of the matrix.

    Attributes:
        name: the file's name, without .py.
        origin: whose it is.
        arguments: what it is started with, in the folder that `dropin_world` makes.
        import_after: the start of the line behind which the import goes.
        places: pillar -> where its line goes.
        refused: pillar -> the words with which it says that it cannot work.
        needs: a package that is not among this project's, or None.
        file: how its path ends, where others have files of its name.
    """

    name: str
    origin: str
    arguments: dict[str, str]
    import_after: str
    places: dict[str, Place]
    refused: dict[str, str] = field(default_factory=dict)
    needs: str | None = None
    file: str = ""

    @property
    def path(self) -> str:
        """How the path of the script ends."""
        return self.file or f"/{self.name}.py"

    def words(self) -> list[str]:
        """The arguments, as words of a command line."""
        return [word for name, value in self.arguments.items() for word in (name, value) if word]

    def patched(self, text: str, pillar: str) -> str:
        """The script with a pillar's two lines; as it is for "none"."""
        if pillar == "none":
            return text
        place = self.places[pillar]
        lines = text.splitlines(keepends=True)
        number = _find(lines, place.at, self.name)
        indent = " " * (len(place.at) - len(place.at.lstrip()))
        lines.insert(number + place.after, f"{indent}{place.line}\n")
        lines.insert(_find(lines, self.import_after, self.name) + 1, f"{IMPORTS[place.kind or pillar]}\n")
        return "".join(lines)


def difference(before: str, after: str, name: str) -> str:
    """The lines that differ, as `diff` writes them."""
    found = difflib.unified_diff(before.splitlines(), after.splitlines(), f"a/{name}", f"b/{name}", n=0, lineterm="")
    return "\n".join(found)


def added_lines(difference: str) -> int:
    """How many lines a difference adds.

    Raises:
        ValueError: it takes lines away too, so that the script is not unmodified.
    """
    body = [line for line in difference.splitlines() if not line.startswith(("---", "+++", "@@"))]
    if any(line.startswith("-") for line in body):
        raise ValueError("the script was changed, not only added to")
    return len(body)


def _find(lines: list[str], start: str, name: str) -> int:
    number = next((i for i, line in enumerate(lines) if line.startswith(start)), None)
    if number is None:
        raise ValueError(f"{name} has no line that starts with {start!r}; is it another version?")
    return number


def _with_trainer(
    *, initialise: str, policy: str = FREEZE, model: str = "        model=model,", train: str = "    # Training"
) -> dict[str, Place]:
    return {
        "policy": Place(f"callbacks=[PolicyCallback({policy})],", model, after=True),
        "lora": Place(LORA, initialise),
        "embedding": Place(WATCH, train),
    }


def _without_trainer(*, optimizer: str, metric: str, log: str, measure: str = MEASURE) -> dict[str, Place]:
    return {
        "policy": Place(APPLY, optimizer, kind="loop policy"),
        "lora": Place(LORA, optimizer),
        "embedding": Place(f"{log}({measure})", metric),
    }


VERSIONS = "from transformers.utils.versions import"
IMAGE_MODEL = {"--model_name_or_path": "vit", "--ignore_mismatched_sizes": "", "--label_column_name": "label"}
PIXELS = 'lambda batch: (batch["image"].to(mean.device) - mean) / std'
PETS = f"EmbeddingCallback.from_loaders(train_dataloader, eval_dataloader, inputs={PIXELS}).measure(model)"
OFFICIAL = (
    Script(
        "run_image_classification",
        "transformers",
        IMAGE_MODEL | FOLDERS | TRAINER | BATCH | {"--remove_unused_columns": "False"},
        VERSIONS,
        _with_trainer(initialise="    # Initialize our trainer"),
    ),
    Script(
        "run_image_classification_no_trainer",
        "transformers",
        IMAGE_MODEL | {"--dataset_name": "images"} | BATCH | LOOP,
        VERSIONS,
        _without_trainer(optimizer="    # Optimizer", metric="        eval_metric = metric.compute()", log="print"),
    ),
    Script(
        "run_glue",
        "transformers",
        TEXT | TRAINER | BATCH | {"--max_seq_length": "16", "--save_steps": "2"},
        VERSIONS,
        _with_trainer(initialise="    # Initialize our Trainer"),
    ),
    Script(
        "run_glue_no_trainer",
        "transformers",
        TEXT | BATCH | LOOP | {"--max_length": "16"},
        VERSIONS,
        _without_trainer(optimizer="    # Optimizer", metric="        eval_metric = metric.compute()", log="print"),
    ),
    Script(
        "run_classification",
        "transformers",
        TEXT | TRAINER | BATCH | {"--max_seq_length": "16", "--shuffle_train_dataset": ""},
        VERSIONS,
        _with_trainer(initialise="    # Initialize our Trainer"),
    ),
    Script(
        "nlp_example",
        "accelerate",
        {"--cpu": ""},
        "from accelerate import",
        _without_trainer(
            optimizer="    # Instantiate optimizer",
            metric="        eval_metric = metric.compute()",
            log="accelerator.print",
        ),
    ),
    Script(
        "cv_example",
        "accelerate",
        {"--cpu": "", "--data_dir": "pets"},
        "from accelerate import",
        _without_trainer(
            optimizer="    # Instantiate optimizer",
            metric="        eval_metric = accurate.item() / num_elems",
            log="accelerator.print",
            measure=PETS,
        ),
    ),
)
TOKENS = {"embedding": "are one a token"}
NO_LABELS = {"embedding": "have no labels"}
ARGS = "        args=training_args,"
LINES = {"--train_file": "lines.txt", "--validation_file": "lines.txt"}
OFFICIAL += (
    Script(
        "run_clm",
        "transformers",
        {"--model_name_or_path": "gpt2", "--block_size": "16"} | LINES | TRAINER | BATCH,
        VERSIONS,
        _with_trainer(initialise="    # Initialize our Trainer"),
        refused=TOKENS,
    ),
    Script(
        "run_mlm",
        "transformers",
        {"--model_name_or_path": "bert", "--max_seq_length": "16", "--line_by_line": ""} | LINES | TRAINER | BATCH,
        VERSIONS,
        _with_trainer(initialise="    # Initialize our Trainer"),
        refused=TOKENS,
    ),
    Script(
        "run_ner",
        "transformers",
        {"--model_name_or_path": "bert", "--train_file": "ner.json", "--validation_file": "ner.json"}
        | TRAINER
        | BATCH
        | {"--ignore_mismatched_sizes": ""},
        VERSIONS,
        _with_trainer(initialise="    # Initialize our Trainer"),
        refused=TOKENS,
    ),
    Script(
        "run_qa",
        "transformers",
        {"--model_name_or_path": "bert", "--train_file": "qa.json", "--validation_file": "qa.json"}
        | TRAINER
        | BATCH
        | {"--max_seq_length": "24", "--doc_stride": "8"},
        VERSIONS,
        _with_trainer(initialise="    # Initialize our Trainer", train="    # Training\n"),
        refused=NO_LABELS,
    ),
    Script(
        "run_summarization",
        "transformers",
        {"--model_name_or_path": "t5", "--train_file": "summaries.csv", "--validation_file": "summaries.csv"}
        | TRAINER
        | BATCH
        | {"--max_source_length": "16", "--max_target_length": "8"},
        VERSIONS,
        _with_trainer(initialise="    # Initialize our Trainer", policy=EACH, model=ARGS),
        refused=TOKENS,
        needs="nltk",
    ),
    Script(
        "run_translation",
        "transformers",
        {"--model_name_or_path": "t5", "--train_file": "pairs.json", "--validation_file": "pairs.json"}
        | TRAINER
        | BATCH
        | {"--source_lang": "en", "--target_lang": "de", "--max_source_length": "16", "--max_target_length": "8"},
        VERSIONS,
        _with_trainer(initialise="    # Initialize our Trainer", policy=EACH, model=ARGS),
        refused=TOKENS,
    ),
    Script(
        "run_clip",
        "transformers",
        {"--model_name_or_path": "clip", "--train_file": "captions.json", "--validation_file": "captions.json"}
        | TRAINER
        | BATCH
        | {"--image_column": "image_path", "--caption_column": "caption", "--max_seq_length": "16"}
        | {"--remove_unused_columns": "False"},
        VERSIONS,
        _with_trainer(initialise="    # 8. Initialize our trainer", policy=EACH, train="    # 9. Training"),
        refused=NO_LABELS,
    ),
    Script(
        "run_mae",
        "transformers",
        {"--model_name_or_path": "mae", "--dataset_name": "images", "--image_column_name": "image"}
        | TRAINER
        | BATCH
        | {"--remove_unused_columns": "False", "--label_names": "pixel_values"},
        VERSIONS,
        _with_trainer(initialise="    # Initialize our trainer", policy=EACH),
        refused=NO_LABELS,
    ),
    Script(
        "run_speech_recognition_seq2seq",
        "transformers",
        {"--model_name_or_path": "whisper", "--dataset_name": "speech", "--text_column_name": "text"}
        | TRAINER
        | BATCH
        | {"--eval_split_name": "validation", "--max_duration_in_seconds": "2", "--freeze_feature_encoder": "False"},
        VERSIONS,
        _with_trainer(initialise="    # 11. Initialize Trainer", policy=EACH, train="    # 12. Training"),
        refused=TOKENS,
    ),
    Script(
        "run_audio_classification",
        "transformers",
        {"--model_name_or_path": "wav2vec2", "--dataset_name": "sounds", "--max_length_seconds": "1"}
        | TRAINER
        | BATCH
        | {"--label_column_name": "label", "--ignore_mismatched_sizes": "", "--remove_unused_columns": "False"},
        VERSIONS,
        _with_trainer(initialise="    # Initialize our trainer"),
    ),
    Script(
        "run_swag",
        "transformers",
        {"--model_name_or_path": "bare", "--train_file": "swag.json", "--validation_file": "swag.json"}
        | TRAINER
        | BATCH,
        "from transformers.utils import check_min_version",
        _with_trainer(initialise="    # Initialize our Trainer"),
        refused={"embedding": "samples"},
    ),
    Script(
        "run_semantic_segmentation",
        "transformers",
        {"--model_name_or_path": "segformer", "--dataset_name": "scenes", "--remove_unused_columns": "False"}
        | TRAINER
        | BATCH,
        VERSIONS,
        _with_trainer(initialise="    # Initialize our trainer"),
        refused={"embedding": "are one a pixel"},
        needs="albumentations",
    ),
    Script(
        "run_object_detection",
        "transformers",
        {"--model_name_or_path": "yolos", "--dataset_name": "boxes", "--image_square_size": "64"}
        | {name: value for name, value in TRAINER.items() if name != "--do_eval"}  # its metrics need one process
        | BATCH
        | {"--remove_unused_columns": "False", "--eval_do_concat_batches": "False", "--ignore_mismatched_sizes": ""},
        VERSIONS,
        _with_trainer(initialise="    trainer = Trainer("),
        refused={"embedding": "the Trainer has no eval_dataset"},
        needs="albumentations",
    ),
    *(
        Script(
            name,
            "trl",
            {"--model_name_or_path": "gpt2", "--dataset_name": data, "--max_steps": "4", "--use_cpu": ""}
            | BATCH
            | {"--report_to": "none", "--bf16": "False", "--save_strategy": "no", "--max_length": "24"},
            "import argparse",
            {
                "policy": Place(CALLBACK, ARGS, after=True),
                "lora": Place("add_lora(trainer.model, LoraConfig(r=4))", "    # Train the model"),
                "embedding": Place(WATCH, "    # Train the model"),
            },
            refused={"embedding": "the Trainer has no eval_dataset"},
            needs="trl",
            file=f"trl/scripts/{name}.py",
        )
        for name, data in (("sft", "prompts-sft"), ("dpo", "prompts"))
    ),
)
SHAPE = {
    "policy": Place(CALLBACK, "        model=model,", after=True),
    "lora": Place(LORA, "    # the trainer"),
    "embedding": Place(WATCH, "    trainer.train()"),
}
LATE = SHAPE | {"policy": Place(f"trainer.add_callback(PolicyCallback({FREEZE}))", "    trainer.train()")}
OWN = (
    Script("own_trainer", "tests/dropin/scripts", {}, "from transformers import", SHAPE),
    Script(
        "late_callback",
        "tests/dropin/scripts",
        {},
        "from transformers import",
        LATE,
        refused={"policy": "came after the Trainer was built"},
    ),
    Script(
        "model_init",
        "tests/dropin/scripts",
        {},
        "from transformers import",
        {
            "policy": Place(APPLY, "        # the model is there", kind="loop policy"),
            "lora": Place(LORA, "        # the model is there"),
            "embedding": Place(WATCH, "    trainer.train()"),
        },
    ),
    Script(
        "trl_sft",
        "tests/dropin/scripts",
        {},
        "from trl import",
        SHAPE,
        refused={"embedding": "are one a token"},
        needs="trl",
    ),
    Script(
        "sentence_pairs",
        "tests/dropin/scripts",
        {},
        "from sentence_transformers.sentence_transformer.losses import",
        {
            "policy": Place(f"Policy({FREEZE}).apply(model[0].auto_model)", "    # the trainer", kind="loop policy"),
            "lora": Place("add_lora(model[0].auto_model, LoraConfig(r=4))", "    # the trainer"),
            "embedding": Place(WATCH, "    trainer.train()"),
        },
        refused={"embedding": "have no labels"},
        needs="sentence_transformers",
    ),
)
SCRIPTS = {script.name: script for script in (*OFFICIAL, *OWN)}
