from .applied import AppliedPolicy as AppliedPolicy
from .callback import PolicyCallback as PolicyCallback
from .phases import At as At
from .policy import Policy as Policy
from .prefix_cache import PrefixCache as PrefixCache
from .reinit import reinit_layers as reinit_layers
