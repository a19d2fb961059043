"""Whether each sample is read by itself: values that depend on the others in the batch, or on padding, are found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress

import torch
from torch import Tensor, nn

from hf_tl.dataflow import tensors_in
from hf_tl.embedding.pooling import by_tokens, positions_mask
from hf_tl.embedding.reader import TapReader
from hf_tl.embedding.taps import Tap
from hf_tl.errors import InputError, in_one_line
from hf_tl.models import Network
from hf_tl.trace import Batch, Shapes, evaluating, first_float, forward, in_turn, n_samples, shape_of, uncompiled


VARIATIONS = 4  # inputs of one shape and other content that show whether a shape depends on the content
TOLERANCE = 1e-4  # of the largest value of a tap: above all rounding to float32, below what padding does


def find_mixed(model: nn.Module, example: Batch, taps: Sequence[Tap], *, several: bool = True) -> dict[str, str]:
    """The taps whose values cannot be told apart by samples: name -> reason.

    No axis is the samples' by its length alone: it must be half as long for half the batch. Several pieces a sample,
    such as windows, must come in a number that does not depend on their content, and hold one sample each. Where
    `several` samples will share a batch, one gives by itself what it gives in company.
    """
    n, one = n_samples(example), _shapes_in(model, _part(example, 0))
    reasons: dict[str, str] = {}
    for tap in taps:
        key = tap.reading.module, tap.reading.call
        if tap.reading.side == "output" and key in one and one[key] and one[key][0] * n != tap.shape[0]:
            reasons[tap.name] = f"its first axis is not the samples': {tap.shape} for {n}, {one[key]} for one"
    fine = [tap for tap in taps if tap.name not in reasons]
    if several:
        reasons |= _company(model, example, [tap for tap in fine if not tap.shape or tap.shape[0] == n])
    pieces = [tap for tap in fine if tap.shape and tap.shape[0] != n]
    if not pieces:
        return reasons
    generator = torch.Generator().manual_seed(0)
    for _ in range(VARIATIONS):
        other = _shapes_in(model, _varied(example, generator))
        for tap in pieces:
            shape = other.get((tap.reading.module, tap.reading.call), tap.shape)
            if tap.reading.side == "output" and shape[0] != tap.shape[0]:
                reasons[tap.name] = "how many values it gives depends on what they are, as where tokens are routed"
    return reasons | _company(model, example, [tap for tap in pieces if tap.name not in reasons])


def _company(model: nn.Module, example: Batch, taps: Sequence[Tap]) -> dict[str, str]:
    """The taps for which a sample gives other values alone, as networks that draw masks do anyway."""
    if not taps:
        return {}
    n = n_samples(example)
    try:
        with TapReader(model, taps) as read:
            together = read(example)
            alone = torch.cat([read(_part(example, i)) for i in range(n)])
            found = _differing(taps, together, alone, tolerance=_tolerance(model))
            drawn = _differing(taps, together, read(example), tolerance=0) if found else []
    except InputError:  # a layer that does not run is named when it is read
        return {}
    except Exception as error:  # of the network
        raise InputError(
            f"{type(model).__name__} runs on {n} samples at a time and not on one ({in_one_line(error)}), so that no "
            f"sample is read by itself; a network to be read takes any number of them"
        ) from error
    found = [name for name in found if name not in drawn]
    return dict.fromkeys(found, "what it gives for a sample depends on the others in the batch")


def find_unmatched(example: Batch, taps: Sequence[Tap]) -> dict[str, str]:
    """The taps of which nobody can tell which positions are padding: name -> reason; {} where nothing is padded."""
    mask = example.get("attention_mask") if isinstance(example, Mapping) else None
    if mask is None or mask.ndim != 2:
        return {}
    reasons = {}
    for tap in taps:
        if not tap.shape or (len(tap.shape) == 2 and tap.shape[0] == len(mask)):
            continue
        try:
            shape = by_tokens(tap.shape, mask, channels_last=tap.channels_last)
            positions_mask(mask, shape, channels_last=tap.channels_last, strides=tap.strides)
        except ValueError as error:
            reasons[tap.name] = f"{error}, so padding would count; batch_size=1 reads it"
    return reasons


def find_padding_leak(network: Network, taps: Sequence[Tap], together: Batch, alone: Sequence[Batch]) -> str | None:
    """A sentence on the layers for which a sample in a padded batch gives other values than alone, or None.

    Args:
        network: any network.
        taps: what is read.
        together: a batch of some samples.
        alone: each of them in a batch of its own; where none is shorter, nothing is padded and nothing is tried.
    """
    if all(batch_shapes(_part(together, i)) == batch_shapes(own) for i, own in enumerate(alone)):
        return None
    with TapReader(network.model, taps) as read:
        expected = torch.cat([read(own) for own in alone])
        leaks = _differing(taps, read(together), expected, tolerance=_tolerance(network.model))
    if not leaks:
        return None
    return (
        f"padding changes what {len(leaks)} of {len(taps)} layers of {network.name} give, the first {leaks[0]!r}: the "
        f"features of a sample depend on the longest one in its batch; use batch_size=1 or samples of one length"
    )


def _tolerance(model: nn.Module) -> float:
    """The share of a tap's largest value up to which two of its values count as equal, in the network's precision."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return max([TOLERANCE, *(8 * torch.finfo(dtype).eps for dtype in dtypes)])


def _differing(taps: Sequence[Tap], values: Tensor, expected: Tensor, *, tolerance: float) -> list[str]:
    """The taps whose columns differ between two (n, n_features) by more than rounding."""
    found, start = [], 0
    for tap in taps:
        columns = slice(start, start := start + tap.n_features)
        scale = expected[:, columns].abs().nan_to_num().max()
        if not torch.isclose(values[:, columns], expected[:, columns], 0, tolerance * float(scale), True).all():
            found.append(tap.name)
    return found


def _shapes_in(model: nn.Module, batch: Batch) -> Shapes:
    """What each module call returns in a pass, as far as that gets: the batch may make no sense to the network."""
    shapes: Shapes = {}
    with (
        in_turn(model),
        _watching(model, shapes),
        torch.random.fork_rng(),
        evaluating(model),
        uncompiled(),
        torch.no_grad(),
        suppress(Exception),
    ):
        forward(model, batch)
    return shapes


def _part(batch: Batch, index: int) -> Batch:
    """One sample of a batch, padded as it is there."""
    if isinstance(batch, Tensor):
        return batch[index : index + 1]
    n = n_samples(batch)
    return {key: value[index : index + 1] if value.ndim and len(value) == n else value for key, value in batch.items()}


def _varied(batch: Batch, generator: torch.Generator) -> Batch:
    """The same shapes with other content: each number is one of the batch's own; masks stay as they are."""

    def drawn(value: Tensor) -> Tensor:
        flat = value.flatten()
        return flat[torch.randint(len(flat), (len(flat),), generator=generator).to(flat.device)].view(value.shape)

    if isinstance(batch, Tensor):
        return drawn(batch)
    content = [key for key, value in batch.items() if value.is_floating_point() or int(value.max()) > 1]
    return {key: drawn(value) if key in content else value for key, value in batch.items()}


def batch_shapes(batch: Batch) -> tuple[torch.Size, ...]:
    """The shapes of a batch's tensors."""
    return tuple(value.shape for value in tensors_in(batch))


@contextmanager
def _watching(model: nn.Module, returned: Shapes) -> Iterator[None]:
    """Fills in the shape of what each module call returns, in the order in which calls end."""
    calls: dict[str, int] = {}

    def watch(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: object) -> None:
            call = calls.get(name, 0)
            calls[name] = call + 1
            returned[name, call] = shape_of(first_float(output))

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(watch(name)).remove)
        yield
