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
    from hf_tl.models import Network, load_network
    from hf_tl.probes.heads import make_head
    from hf_tl.probes.kernel import KernelSVM
    from hf_tl.probes.layer_probes import LayerProbes, layer_probes
    from hf_tl.probes.learning_curve import LearningCurve, learning_curve
    from hf_tl.probes.metrics import Accuracy, MacroF1, MeanPerClassAccuracy, TopKAccuracy
    from hf_tl.probes.row_space import RowSpace
    from hf_tl.probes.svm import LinearSVM
    from hf_tl.probes.voting import majority, mean_scores

__all__ = [
    "RECIPES",
    "Accuracy",
    "Embedding",
    "FullNetworkEmbedding",
    "InputError",
    "KernelSVM",
    "Layer",
    "LayerProbes",
    "LearningCurve",
    "LinearSVM",
    "MacroF1",
    "MeanPerClassAccuracy",
    "Network",
    "Recipe",
    "RowSpace",
    "Rows",
    "Task",
    "TopKAccuracy",
    "layer_probes",
    "learning_curve",
    "list_layers",
    "load_network",
    "load_task",
    "majority",
    "make_head",
    "mean_scores",
]

__version__ = "0.1.0"

_HOMES = {
    "RECIPES": "hf_tl.embedding.recipe",
    "Accuracy": "hf_tl.probes.metrics",
    "Embedding": "hf_tl.embedding.embedding",
    "FullNetworkEmbedding": "hf_tl.embedding.full_network",
    "InputError": "hf_tl.errors",
    "KernelSVM": "hf_tl.probes.kernel",
    "Layer": "hf_tl.layers",
    "LayerProbes": "hf_tl.probes.layer_probes",
    "LearningCurve": "hf_tl.probes.learning_curve",
    "LinearSVM": "hf_tl.probes.svm",
    "MacroF1": "hf_tl.probes.metrics",
    "MeanPerClassAccuracy": "hf_tl.probes.metrics",
    "Network": "hf_tl.models",
    "Recipe": "hf_tl.embedding.recipe",
    "RowSpace": "hf_tl.probes.row_space",
    "Rows": "hf_tl.data",
    "Task": "hf_tl.data",
    "TopKAccuracy": "hf_tl.probes.metrics",
    "layer_probes": "hf_tl.probes.layer_probes",
    "learning_curve": "hf_tl.probes.learning_curve",
    "list_layers": "hf_tl.layers",
    "load_network": "hf_tl.models",
    "load_task": "hf_tl.data",
    "majority": "hf_tl.probes.voting",
    "make_head": "hf_tl.probes.heads",
    "mean_scores": "hf_tl.probes.voting",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_tl' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
