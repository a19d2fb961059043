"""Which values of a network are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Literal, get_args

from torch import Tensor, nn

from hf_tl.embedding.places import select_places, towers_of
from hf_tl.embedding.pooling import Pooling, find_pooling
from hf_tl.embedding.strides import strides_of
from hf_tl.embedding.survey import Survey
from hf_tl.embedding.tap import LAST, PRESETS, Kind, Selection, Tap, match_term, terms_of
from hf_tl.errors import InputError, in_one_line
from hf_tl.layers.selection import find_place
from hf_tl.models import Network
from hf_tl.names import closest
from hf_tl.table import format_table
from hf_tl.trace import Batch, first_float, trace


PREFIX_TOKENS = {"cls_token", "class_token", "class_embedding", "dist_token", "distillation_token"}
REGISTERS = {"reg_token", "register_tokens"}


def find_taps(
    network: Network,
    example: Batch,
    *,
    activation: Literal["after", "before"],
    selection: Selection = ("auto", LAST),
    top: float = 1.0,
) -> tuple[list[Tap], dict[str, str]]:
    """The chosen values outside the classifier, in execution order, and the tap "last" behind them.

    Args:
        network: any network.
        example: a batch of two rows or more.
        activation: whether a layer is read after its norm and activation, or its own output before them.
        selection: see `Selection`.
        top: the share of the chosen taps to keep, counted from the task side.

    Returns:
        The taps, and the layers that cannot be read: name -> reason.

    Raises:
        InputError: the network cannot run on the example, or the selection chooses nothing.
    """
    returned: dict[tuple[str, int], tuple[int, ...]] = {}
    try:
        with _watching(network.model, returned):
            record = trace(network.model, example)
    except Exception as error:  # the network is the user's, and so are its errors
        raise InputError(
            f"{network.name} cannot run on its prepared inputs, {_shapes(example)}: {in_one_line(error)}; "
            f"check the image size and what prepares the inputs"
        ) from error
    survey = Survey(network, record, returned, n_rows(example), activation)
    taps = survey.select(selection)
    strides = strides_of(record, example)
    prefix = _n_prefix_tokens(network.model)
    taps = [
        replace(tap, prefix=prefix, strides=strides.get(_n_positions(tap), ())) for tap in _top(taps, top, selection)
    ]
    return taps, survey.left_out


def select_names(
    names: Sequence[str],
    taps: Selection,
    top: float = 1.0,
    *,
    kinds: Sequence[str] = (),
    places: Sequence[str] = (),
) -> list[str]:
    """The names that a selection keeps of taps that were read before, in the order of `names`.

    Args:
        names: tap names from data to task.
        taps: see `Selection`; "auto" keeps all but "last", a callable cannot be asked again.
        top: the share of the selected taps to keep, counted from the task side, rounded down, at least one.
        kinds: what each tap is, for the presets.
        places: where each stands, for what is chosen by place.

    Raises:
        InputError: a term that chooses nothing, and a pointer to it; or a share outside (0, 1].
    """
    if callable(taps):
        raise InputError("a function over modules cannot choose among stored layers; give patterns over their names")
    kept: set[str] = set()
    others = [name for name in names if name != LAST]
    for text, selection, at in terms_of(taps):
        if text in names:
            kept.add(text)
        elif text == "auto":
            kept.update(others)
        elif text in PRESETS and kinds:
            kept.update(n for n, kind in zip(names, kinds, strict=True) if kind in PRESETS[text])
        elif find_place(text, towers_of(places)):
            chosen = select_places(places, text, selection=selection, position=at)
            kept.update(n for n, place in zip(names, places, strict=True) if place in chosen)
        else:
            kept.update(match_term(text, names if text == LAST else others, selection=selection, position=at))
    return _top([name for name in names if name in kept], top, taps)


def with_pooling(
    taps: Sequence[Tap], pool: str | Pooling | Mapping[str, str | Pooling], network: Network
) -> list[Tap]:
    """The taps with their pooling.

    Args:
        taps: from `find_taps`.
        pool: a name in `POOLINGS` or a pooling of your own, for all taps, or one for each kind of tap, such as
            {"conv": "max", "block": "cls"}; the mean for kinds that are not named. "auto" is the mean.
        network: what the taps belong to.

    Raises:
        InputError: an unknown pooling or kind; "cls" where there is no class token.
    """
    kinds = get_args(Kind)
    wanted = dict(pool) if isinstance(pool, Mapping) else dict.fromkeys(kinds, pool)
    for kind, how in wanted.items():
        if kind not in kinds:
            raise InputError(f"there is no kind of tap {kind!r}; {closest(kind, kinds)}")
        wanted[kind] = "mean" if how == "auto" else how
        find_pooling(wanted[kind])
    made = [replace(tap, pool=wanted.get(tap.kind, "mean")) for tap in taps]
    if network.modality == "image" and any(tap.pool == "cls" and tap.prefix == 0 for tap in made):
        raise InputError(f"{network.name} has no class token for pool='cls'; use 'mean' or 'max'")
    return made


def describe_taps(taps: Sequence[Tap]) -> str:
    """A table: each tap, what it is, after what it is read, its shape in a batch of two, its pooling and columns."""
    rows, start = [], 0
    for tap in taps:
        columns = f"{start}:{start + tap.n_features}"
        how = tap.pool if isinstance(tap.pool, str) else type(tap.pool).__name__
        rows.append([tap.name, tap.kind, " + ".join(tap.chain), str(tap.shape), how, columns])
        start += tap.n_features
    return format_table(["tap", "kind", "after", "shape", "pool", "columns"], rows)


def n_rows(batch: Batch) -> int:
    """Number of rows of a batch: the length of its first tensor."""
    return len(batch) if isinstance(batch, Tensor) else len(next(iter(batch.values())))


@contextmanager
def _watching(model: nn.Module, returned: dict[tuple[str, int], tuple[int, ...]]) -> Iterator[None]:
    """Fills in the shape of what each module call returns, in the order in which calls end."""
    calls: dict[str, int] = {}

    def watch(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: object) -> None:
            call = calls.get(name, 0)
            calls[name] = call + 1
            value = first_float(output)
            returned[name, call] = () if value is None else tuple(value.shape)

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(watch(name)).remove)
        yield


def _top(taps: list, top: float, selection: Selection) -> list:
    if not 0 < top <= 1:
        raise InputError(f"top must be above 0 and at most 1, the share of layers to keep, got {top}")
    if not taps:
        raise InputError(f"taps={selection!r} selects none of the layers of the network")
    return taps[-max(1, int(top * len(taps))) :]


def _n_positions(tap: Tap) -> int | None:
    return tap.shape[1 if tap.channels_last else 2] if len(tap.shape) == 3 else None


def _n_prefix_tokens(model: nn.Module) -> int:
    """Tokens before the patches: class, distillation and register tokens, by the names of their parameters."""
    count = 0
    for name, parameter in model.named_parameters():
        leaf = name.rpartition(".")[2]
        count += 1 if leaf in PREFIX_TOKENS else parameter.shape[1] if leaf in REGISTERS else 0
    return count


def _shapes(batch: Batch) -> str:
    parts = {"input": batch} if isinstance(batch, Tensor) else batch
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in parts.items())
