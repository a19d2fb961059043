"""hf_tl: transfer learning, layer by layer, for the Hugging Face stack.

The public names are below. Each is imported when it is first used, so that `import hf_tl` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from hf_tl.data import Rows, Task, load_task
    from hf_tl.embedding.embedding import Embedding
    from hf_tl.embedding.full_network import FullNetworkEmbedding
    from hf_tl.embedding.recipe import RECIPES, Recipe
    from hf_tl.errors import InputError
    from hf_tl.layers import Layer, list_layers
    from hf_tl.lora.adapters import adapters_disabled, combine_adapters, set_adapter
    from hf_tl.lora.config import LoraConfig
    from hf_tl.lora.eva import initialise_eva
    from hf_tl.lora.inject import add_lora
    from hf_tl.lora.loading import load_adapter
    from hf_tl.lora.merge import merge_lora, remove_lora, unmerge_lora
    from hf_tl.lora.plus import lora_plus_groups
    from hf_tl.lora.saving import save_adapter
    from hf_tl.lora.trainer_callback import AdapterCallback
    from hf_tl.models import Network, load_network
    from hf_tl.probes.learning_curve import LearningCurve
    from hf_tl.probes.svm import LinearSVM

__all__ = [
    "RECIPES",
    "AdapterCallback",
    "Embedding",
    "FullNetworkEmbedding",
    "InputError",
    "Layer",
    "LearningCurve",
    "LinearSVM",
    "LoraConfig",
    "Network",
    "Recipe",
    "Rows",
    "Task",
    "adapters_disabled",
    "add_lora",
    "combine_adapters",
    "initialise_eva",
    "list_layers",
    "load_adapter",
    "load_network",
    "load_task",
    "lora_plus_groups",
    "merge_lora",
    "remove_lora",
    "save_adapter",
    "set_adapter",
    "unmerge_lora",
]

__version__ = "0.1.0"

_HOMES = {
    "RECIPES": "hf_tl.embedding.recipe",
    "AdapterCallback": "hf_tl.lora.trainer_callback",
    "Embedding": "hf_tl.embedding.embedding",
    "FullNetworkEmbedding": "hf_tl.embedding.full_network",
    "InputError": "hf_tl.errors",
    "Layer": "hf_tl.layers",
    "LearningCurve": "hf_tl.probes.learning_curve",
    "LinearSVM": "hf_tl.probes.svm",
    "LoraConfig": "hf_tl.lora.config",
    "Network": "hf_tl.models",
    "Recipe": "hf_tl.embedding.recipe",
    "Rows": "hf_tl.data",
    "Task": "hf_tl.data",
    "adapters_disabled": "hf_tl.lora.adapters",
    "add_lora": "hf_tl.lora.inject",
    "combine_adapters": "hf_tl.lora.adapters",
    "initialise_eva": "hf_tl.lora.eva",
    "list_layers": "hf_tl.layers",
    "load_adapter": "hf_tl.lora.loading",
    "load_network": "hf_tl.models",
    "load_task": "hf_tl.data",
    "lora_plus_groups": "hf_tl.lora.plus",
    "merge_lora": "hf_tl.lora.merge",
    "remove_lora": "hf_tl.lora.merge",
    "save_adapter": "hf_tl.lora.saving",
    "set_adapter": "hf_tl.lora.adapters",
    "unmerge_lora": "hf_tl.lora.merge",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_tl' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
