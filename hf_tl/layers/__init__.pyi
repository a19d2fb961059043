from .layers import Layer as Layer
from .layers import Layers as Layers
from .layers import layers_of as layers_of
from .layers import list_layers as list_layers
from .partition import head_names as head_names
from .select import select_layers as select_layers
