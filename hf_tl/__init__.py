"""hf_tl: transfer learning, layer by layer, for the Hugging Face stack.

The public names are below. Each is imported when it is first used, so that `import hf_tl` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from hf_tl.card import About
    from hf_tl.classifier import LabelledRows, collate, find_classes, find_modality, load_classifier, score
    from hf_tl.data import Rows, Task, load_task
    from hf_tl.embedding.callback import EmbeddingCallback
    from hf_tl.embedding.crops import TenCrops, mean_feature, mean_score, vote
    from hf_tl.embedding.embedding import Embedding
    from hf_tl.embedding.full_network import FullNetworkEmbedding
    from hf_tl.embedding.preprocessing import Discretizer, LayerNormalizer, LayerSelector, Standardizer, StreamedPCA
    from hf_tl.embedding.pretrained import push_embedding
    from hf_tl.embedding.recipe import RECIPES, Recipe
    from hf_tl.errors import InputError
    from hf_tl.hub import Push
    from hf_tl.layers import Layer, Layers, list_layers, select
    from hf_tl.lora.adapters import adapters_disabled, set_adapter
    from hf_tl.lora.combine import combine_adapters
    from hf_tl.lora.config import LoraConfig
    from hf_tl.lora.eva import initialise_eva
    from hf_tl.lora.inject import add_lora
    from hf_tl.lora.loading import load_adapter
    from hf_tl.lora.merge import merge_lora, remove_lora, unmerge_lora
    from hf_tl.lora.plus import lora_plus_groups
    from hf_tl.lora.push import push_adapter
    from hf_tl.lora.saving import save_adapter
    from hf_tl.lora.trainer_callback import AdapterCallback
    from hf_tl.models import Network, load_network
    from hf_tl.policies.applied import AppliedPolicy
    from hf_tl.policies.callback import PolicyCallback
    from hf_tl.policies.phases import At
    from hf_tl.policies.policy import Policy
    from hf_tl.policies.prefix_cache import PrefixCache
    from hf_tl.policies.reinit import reinit_layers
    from hf_tl.probes.heads import make_head
    from hf_tl.probes.kernel import KernelSVM
    from hf_tl.probes.layer_probes import LayerProbes, layer_probes
    from hf_tl.probes.learning_curve import LearningCurve, learning_curve
    from hf_tl.probes.metrics import Accuracy, MacroF1, MeanPerClassAccuracy, TopKAccuracy
    from hf_tl.probes.row_space import RowSpace
    from hf_tl.probes.svm import LinearSVM

__all__ = [
    "RECIPES",
    "About",
    "Accuracy",
    "AdapterCallback",
    "AppliedPolicy",
    "At",
    "Discretizer",
    "Embedding",
    "EmbeddingCallback",
    "FullNetworkEmbedding",
    "InputError",
    "KernelSVM",
    "LabelledRows",
    "Layer",
    "LayerNormalizer",
    "LayerProbes",
    "LayerSelector",
    "Layers",
    "LearningCurve",
    "LinearSVM",
    "LoraConfig",
    "MacroF1",
    "MeanPerClassAccuracy",
    "Network",
    "Policy",
    "PolicyCallback",
    "PrefixCache",
    "Push",
    "Recipe",
    "RowSpace",
    "Rows",
    "Standardizer",
    "StreamedPCA",
    "Task",
    "TenCrops",
    "TopKAccuracy",
    "adapters_disabled",
    "add_lora",
    "collate",
    "combine_adapters",
    "find_classes",
    "find_modality",
    "initialise_eva",
    "layer_probes",
    "learning_curve",
    "list_layers",
    "load_adapter",
    "load_classifier",
    "load_network",
    "load_task",
    "lora_plus_groups",
    "make_head",
    "mean_feature",
    "mean_score",
    "merge_lora",
    "push_adapter",
    "push_embedding",
    "reinit_layers",
    "remove_lora",
    "save_adapter",
    "score",
    "select",
    "set_adapter",
    "unmerge_lora",
    "vote",
]

__version__ = "0.1.0"

_HOMES = {
    "RECIPES": "hf_tl.embedding.recipe",
    "About": "hf_tl.card",
    "Accuracy": "hf_tl.probes.metrics",
    "AdapterCallback": "hf_tl.lora.trainer_callback",
    "AppliedPolicy": "hf_tl.policies.applied",
    "At": "hf_tl.policies.phases",
    "Discretizer": "hf_tl.embedding.preprocessing",
    "Embedding": "hf_tl.embedding.embedding",
    "EmbeddingCallback": "hf_tl.embedding.callback",
    "FullNetworkEmbedding": "hf_tl.embedding.full_network",
    "InputError": "hf_tl.errors",
    "KernelSVM": "hf_tl.probes.kernel",
    "LabelledRows": "hf_tl.classifier",
    "Layer": "hf_tl.layers",
    "LayerNormalizer": "hf_tl.embedding.preprocessing",
    "LayerProbes": "hf_tl.probes.layer_probes",
    "LayerSelector": "hf_tl.embedding.preprocessing",
    "Layers": "hf_tl.layers",
    "LearningCurve": "hf_tl.probes.learning_curve",
    "LinearSVM": "hf_tl.probes.svm",
    "LoraConfig": "hf_tl.lora.config",
    "MacroF1": "hf_tl.probes.metrics",
    "MeanPerClassAccuracy": "hf_tl.probes.metrics",
    "Network": "hf_tl.models",
    "Policy": "hf_tl.policies.policy",
    "PolicyCallback": "hf_tl.policies.callback",
    "PrefixCache": "hf_tl.policies.prefix_cache",
    "Push": "hf_tl.hub",
    "Recipe": "hf_tl.embedding.recipe",
    "RowSpace": "hf_tl.probes.row_space",
    "Rows": "hf_tl.data",
    "Standardizer": "hf_tl.embedding.preprocessing",
    "StreamedPCA": "hf_tl.embedding.preprocessing",
    "Task": "hf_tl.data",
    "TenCrops": "hf_tl.embedding.crops",
    "TopKAccuracy": "hf_tl.probes.metrics",
    "adapters_disabled": "hf_tl.lora.adapters",
    "add_lora": "hf_tl.lora.inject",
    "collate": "hf_tl.classifier",
    "combine_adapters": "hf_tl.lora.combine",
    "find_classes": "hf_tl.classifier",
    "find_modality": "hf_tl.classifier",
    "initialise_eva": "hf_tl.lora.eva",
    "layer_probes": "hf_tl.probes.layer_probes",
    "learning_curve": "hf_tl.probes.learning_curve",
    "list_layers": "hf_tl.layers",
    "load_adapter": "hf_tl.lora.loading",
    "load_classifier": "hf_tl.classifier",
    "load_network": "hf_tl.models",
    "load_task": "hf_tl.data",
    "lora_plus_groups": "hf_tl.lora.plus",
    "make_head": "hf_tl.probes.heads",
    "mean_feature": "hf_tl.embedding.crops",
    "mean_score": "hf_tl.embedding.crops",
    "merge_lora": "hf_tl.lora.merge",
    "push_adapter": "hf_tl.lora.push",
    "push_embedding": "hf_tl.embedding.pretrained",
    "reinit_layers": "hf_tl.policies.reinit",
    "remove_lora": "hf_tl.lora.merge",
    "save_adapter": "hf_tl.lora.saving",
    "score": "hf_tl.classifier",
    "select": "hf_tl.layers",
    "set_adapter": "hf_tl.lora.adapters",
    "unmerge_lora": "hf_tl.lora.merge",
    "vote": "hf_tl.embedding.crops",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_tl' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
