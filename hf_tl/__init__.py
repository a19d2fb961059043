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
    from hf_tl.layers import Layer, Layers, list_layers, select
    from hf_tl.models import Network, load_network
    from hf_tl.policies.applied import AppliedPolicy
    from hf_tl.policies.callback import PolicyCallback
    from hf_tl.policies.phases import At
    from hf_tl.policies.policy import Policy
    from hf_tl.policies.prefix_cache import PrefixCache
    from hf_tl.policies.reinit import reinit_layers
    from hf_tl.probes.learning_curve import LearningCurve
    from hf_tl.probes.svm import LinearSVM

__all__ = [
    "RECIPES",
    "AppliedPolicy",
    "At",
    "Embedding",
    "FullNetworkEmbedding",
    "InputError",
    "Layer",
    "Layers",
    "LearningCurve",
    "LinearSVM",
    "Network",
    "Policy",
    "PolicyCallback",
    "PrefixCache",
    "Recipe",
    "Rows",
    "Task",
    "list_layers",
    "load_network",
    "load_task",
    "reinit_layers",
    "select",
]

__version__ = "0.1.0"

_HOMES = {
    "RECIPES": "hf_tl.embedding.recipe",
    "AppliedPolicy": "hf_tl.policies.applied",
    "At": "hf_tl.policies.phases",
    "Embedding": "hf_tl.embedding.embedding",
    "FullNetworkEmbedding": "hf_tl.embedding.full_network",
    "InputError": "hf_tl.errors",
    "Layer": "hf_tl.layers",
    "Layers": "hf_tl.layers",
    "LearningCurve": "hf_tl.probes.learning_curve",
    "LinearSVM": "hf_tl.probes.svm",
    "Network": "hf_tl.models",
    "Policy": "hf_tl.policies.policy",
    "PolicyCallback": "hf_tl.policies.callback",
    "PrefixCache": "hf_tl.policies.prefix_cache",
    "Recipe": "hf_tl.embedding.recipe",
    "Rows": "hf_tl.data",
    "Task": "hf_tl.data",
    "list_layers": "hf_tl.layers",
    "load_network": "hf_tl.models",
    "load_task": "hf_tl.data",
    "reinit_layers": "hf_tl.policies.reinit",
    "select": "hf_tl.layers",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_tl' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
