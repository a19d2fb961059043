"""Put a trained adapter on the Hub, with a model card, and fetch it back by its name to see that it has arrived.

    python recipes/push_adapter.py --folder runs/beans-lora --repo_id user/beans-lora --dataset beans \\
        --task image-classification
    python recipes/push_adapter.py --folder runs/beans-lora --repo_id user/beans-lora --dry_run true

The folder is what `recipes/finetune_lora.py`, `save_adapter` or PEFT wrote. Where it holds the results.json of
finetune_lora.py, the card states the accuracy; checkpoints, optimizer states and all else stay on this machine. The
token is that of HF_TOKEN or of `hf auth login`. One process is enough; under `accelerate launch` the first one pushes.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from huggingface_hub import snapshot_download

from hf_tl import CardInfo, InputError, parse_arguments, push_adapter


@dataclass
class Arguments:
    """What to push where."""

    folder: str = field(metadata={"help": "folder of a saved adapter"})
    repo_id: str = field(metadata={"help": "user/name on the Hub, made where there is none"})
    base_model: str | None = field(default=None, metadata={"help": "Hub id of the network, if it was a local folder"})
    dataset: str | None = field(default=None, metadata={"help": "what it was trained on, for the card"})
    task: str | None = field(default=None, metadata={"help": "as the Hub calls it, such as image-classification"})
    private: bool = field(default=False, metadata={"help": "whether a repository that is made is private"})
    revision: str | None = field(default=None, metadata={"help": "branch, made where there is none"})
    dry_run: bool = field(default=False, metadata={"help": "whether to print the card and send nothing"})


def read_results(folder: Path) -> dict[str, float]:
    """The accuracy that finetune_lora.py measured; nothing where it did not."""
    path = folder / "results.json"
    return {"accuracy": json.loads(path.read_text())["accuracy"]} if path.is_file() else {}


def main() -> None:
    (args,) = parse_arguments(Arguments)
    state = PartialState()
    if state.is_main_process:
        push(args)
    state.destroy_process_group()


def push(args: Arguments) -> None:
    """Sends the folder and fetches it back; in a dry run it prints the card and sends nothing."""
    folder = Path(args.folder)
    info = CardInfo(datasets=[args.dataset], results=read_results(folder), task=args.task) if args.dataset else None
    done = push_adapter(
        folder,
        args.repo_id,
        base_model=args.base_model,
        info=info,
        private=args.private or None,
        revision=args.revision,
        dry_run=args.dry_run,
    )
    if args.dry_run:
        print(done.card)
        return
    there = Path(snapshot_download(args.repo_id, revision=done.commit))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if name in done.sizes and (there / name).stat().st_size != done.sizes[name]:
            raise InputError(f"{name} has another size on the Hub than here; push again")
    print(f"{sum(done.sizes.values())} bytes at {done.url}")


if __name__ == "__main__":
    main()
