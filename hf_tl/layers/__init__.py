"""THE GROUND STONE: the depth-ordered layers of any network, and a language to name them."""

from hf_tl.layers.head import head_names
from hf_tl.layers.layers import Layer, Layers, layers_of, list_layers
from hf_tl.layers.names import closest, is_inside, match_names, name_matcher
from hf_tl.layers.picture import draw_ladder
from hf_tl.layers.selection import select


__all__ = [
    "Layer",
    "Layers",
    "closest",
    "draw_ladder",
    "head_names",
    "is_inside",
    "layers_of",
    "list_layers",
    "match_names",
    "name_matcher",
    "select",
]
