"""`sandwich: 2`: the first two and the last two blocks are tuned, and the head; all in between is frozen."""

from hf_tl import InputError
from hf_tl.layers import Layers


def sandwich(argument: str, layers: Layers) -> str:
    """The number of blocks at each end, the layers of the network -> clauses of a policy."""
    n_blocks = sum(layer.kind == "block" for layer in layers)
    if not argument.isdecimal() or not 0 < 2 * int(argument) < n_blocks:
        raise InputError(f"sandwich takes 1 to {(n_blocks - 1) // 2} blocks at each end, got {argument!r}")
    k = int(argument)
    return f"freeze: all; tune: 0..{k}, -{k}.., head; lr: x0.1 0..{k}"
