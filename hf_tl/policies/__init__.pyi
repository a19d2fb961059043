from .applied import AppliedPolicy as AppliedPolicy
from .policy import Policy as Policy
from .policy_callback import PolicyCallback as PolicyCallback
from .prefix_cache import PrefixCache as PrefixCache
from .reinit import reinit_layers as reinit_layers
