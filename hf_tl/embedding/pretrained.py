"""A fitted embedding as files: layers as JSON, statistics as safetensors, a model card. The network stays where it is.

The files may come from elsewhere: they are data and nothing else. No name found in them is imported, and a
downloaded file names its network by a Hub id or a timm name, never by a path of this machine.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.numpy import save

from hf_tl.card import CardInfo, data_sentence, footprint_table, in_time, results_table, write_card
from hf_tl.embedding.embedding import LayerColumns, read_layer
from hf_tl.embedding.fingerprint import fingerprint_weights
from hf_tl.embedding.pooling import POOLINGS, Pooling
from hf_tl.embedding.recipe import Recipe, Statistics, find_recipe
from hf_tl.embedding.store import STATISTICS, read_tensors
from hf_tl.errors import InputError, in_one_line
from hf_tl.files import write_json, write_whole
from hf_tl.hub import CARD, PushResult, check_repo_id, is_hub_id, is_hub_name, pull_files, push_files
from hf_tl.models import Network, load_network


if TYPE_CHECKING:
    from hf_tl.embedding.full_network import FullNetworkEmbedding

FORMAT = "hf_tl fitted embedding 1"
CONFIG = "embedding_config.json"
TAGS = ("feature-extraction", "full-network-embedding", "transfer-learning")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w.-]+)?")


def save_fitted(embedding: FullNetworkEmbedding, folder: str | Path) -> Path:
    """See `FullNetworkEmbedding.save_pretrained`."""
    folder, name = Path(folder), embedding.require_network().name
    write_fitted(embedding, folder, name=name)
    write_whole(folder / CARD, _card(embedding, info=CardInfo(), name=name))
    return folder


def push_embedding(
    embedding: FullNetworkEmbedding,
    repo_id: str,
    *,
    info: CardInfo | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Add full-network embedding",
    token: str | None = None,
    dry_run: bool = False,
) -> PushResult:
    """Puts a fitted embedding on the Hub: what `save_pretrained` writes, in one commit.

    `FullNetworkEmbedding.from_pretrained("user/name", revision=...)` loads it; the network stays where it is.

    Args:
        embedding: a fitted `FullNetworkEmbedding`.
        repo_id: "user/name"; a model repository that is made where there is none.
        info: datasets, results, time: what the card says and no file knows.
        private: whether a repository that is made is private; None for the default of its owner.
        revision: the branch, which is made where there is none; None for main.
        message: of the commit.
        token: None for HF_TOKEN or what `hf auth login` stored. It is never written and never printed.
        dry_run: whether to say what would be pushed, and send nothing.

    Raises:
        NotFittedError: `fit` comes first.
        InputError: a pooling of your own, which no file can hold; or whatever the Hub objects to.
    """
    check_repo_id(repo_id)
    info = info or CardInfo()
    name = public_name(embedding.require_network().name)
    with tempfile.TemporaryDirectory() as folder:
        write_fitted(embedding, Path(folder), name=name)
        return push_files(
            {file: Path(folder, file) for file in (CONFIG, STATISTICS)},
            repo_id,
            card=lambda there: _card(embedding, info=info, name=name, repo_id=repo_id, old=there),
            message=message,
            private=private,
            revision=revision,
            token=token,
            dry_run=dry_run,
        )


def find_fitted(name: str, revision: str | None) -> Path | None:
    """The folder of a fitted embedding, downloaded where `name` is a Hub id; None for anything else."""
    if (Path(name) / CONFIG).is_file():
        return Path(name)
    if not is_hub_id(name):
        return None
    try:
        folder = pull_files(name, [CONFIG, STATISTICS], revision=revision)
    except InputError:  # no such repository, no Hub: then it is no fitted embedding, and the network's loader says why
        return None
    return folder if (folder / CONFIG).is_file() else None


def read_fitted(
    folder: Path, *, network: Network | None, pool: str | Pooling | Mapping[str, str | Pooling] = "auto"
) -> tuple[dict, list[LayerColumns], Statistics]:
    """The arguments, layers and statistics of the embedding that `save_fitted` wrote, its network among the first.

    Args:
        folder: where the files are.
        network: what it reads; None to load the network that the files name.
        pool: the pooling of the fit where that is a plug-in, whose name in a file is not enough to import it.

    Raises:
        InputError: damaged files, a network that is not the one of the fit, or a pooling that is not hf_tl's own.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise ValueError(f"format should be {FORMAT!r}, got {config['format']!r}")
        thresholds = config["recipe"]["thresholds"]
        recipe = Recipe(
            activation=config["recipe"]["activation"],
            scale=config["recipe"]["scale"],
            ddof=int(config["recipe"]["ddof"]),
            thresholds=None if thresholds is None else (float(thresholds[0]), float(thresholds[1])),
            low_closed=bool(config["recipe"]["low_closed"]),
        )
        layers = [read_layer(item) for item in config["layers"]]
        statistics = Statistics.from_state(read_tensors(folder / STATISTICS))
        if len(statistics.mean) != layers[-1].stop:
            raise ValueError(f"statistics of {len(statistics.mean)} features do not fit {layers[-1].stop} columns")
        taps, saved, base, weights = config["taps"], config["pool"], config["base_model"], config["weights"]
        taps = taps if isinstance(taps, str) else [str(tap) for tap in taps]
        top, dtype = float(config["top"]), str(config["dtype"])
        named = list(saved.values()) if isinstance(saved, dict) else [saved]
        if not all(isinstance(part, str) for part in named):
            raise ValueError(f"pool should be a name, or names by kind of layer, got {saved!r}")
    except (OSError, KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"the fitted embedding in {str(folder)!r} is damaged: {in_one_line(error)}") from error
    foreign = [part for part in named if part not in ("auto", *POOLINGS)]
    if foreign and pool != saved:
        raise InputError(
            f"the embedding in {str(folder)!r} was fitted with the pooling {foreign[0]!r}, which is not one of "
            f"hf_tl's, and a file does not decide what is imported; if you trust it, give it yourself: pool={saved!r}"
        )
    if network is None:
        _check_name(base, folder)
        network = load_network(base, image_size=config.get("image_size"), revision=config.get("revision"))
    if fingerprint_weights(network.model) != weights:
        raise InputError(
            f"the embedding in {str(folder)!r} was fitted on {base!r} with other weights than {network.name!r} has "
            f"here; load the network of the fit, or fit again"
        )
    settings = {"network": network, "recipe": recipe, "taps": taps, "top": top, "pool": saved, "dtype": dtype}
    return settings, layers, statistics


def write_fitted(embedding: FullNetworkEmbedding, folder: Path, *, name: str) -> None:
    """Writes the layers and statistics of a fitted embedding, without a card.

    Args:
        embedding: what is written.
        folder: is made.
        name: of its network, as the file says it.

    Raises:
        NotFittedError: `fit` comes first.
        InputError: a pooling of your own, which no file can hold.
    """

    embedding.check_fitted()
    network, pool, taps, top = embedding.require_network(), embedding.pool, embedding.taps, embedding.top
    if callable(taps):  # what it chose is kept
        taps, top = embedding.layer_names_, 1.0
    if not all(isinstance(part, str) for part in (pool.values() if isinstance(pool, Mapping) else [pool])):
        raise InputError("a pooling of your own cannot be written to a file; use one of the named poolings")
    config = {
        "format": FORMAT,
        "base_model": name,
        "revision": network.revision,
        "image_size": network.image_size,
        "weights": fingerprint_weights(network.model),
        "recipe": asdict(find_recipe(embedding.recipe)),
        "taps": taps if isinstance(taps, str) else list(taps),
        "top": top,
        "pool": dict(pool) if isinstance(pool, Mapping) else pool,
        "dtype": embedding.dtype_name,
        "layers": [asdict(layer) for layer in embedding.layers_],
    }
    write_whole(folder / STATISTICS, save(embedding.statistics_.state()))
    write_json(folder / CONFIG, config)


def _check_name(base: str, folder: Path) -> None:
    """A downloaded file may name a network of the Hub only; one that was saved here may name a folder."""
    from huggingface_hub.constants import HF_HUB_CACHE

    if not isinstance(base, str):
        raise InputError(f"the fitted embedding in {str(folder)!r} is damaged: it does not name its network")
    downloaded = folder.resolve().is_relative_to(Path(HF_HUB_CACHE).resolve())
    place = Path(base.removeprefix("local-dir:"))
    if not HUB_NAME.fullmatch(base) and (downloaded or ".." in place.parts or not place.is_dir()):
        raise InputError(
            f"the embedding in {str(folder)!r} reads the network {base!r}, which is neither a Hub id nor a timm name; "
            f"give it with network=..."
        )


def public_name(name: str) -> str:
    """What others may read of the network's name: of a folder of this machine, its last part."""
    place = Path(name.removeprefix("local-dir:"))
    return f"a folder: {place.name}" if place.exists() else name


def _card(
    embedding: FullNetworkEmbedding, *, info: CardInfo, name: str, repo_id: str | None = None, old: str | None = None
) -> str:
    named = name if is_hub_name(name) else None
    recipe, layers, n = find_recipe(embedding.recipe), embedding.layers_, embedding.statistics_.n
    steps = {"standardize": "standardised", "l2-layer": "each layer at L2 norm 1", "none": "not scaled"}[recipe.scale]
    span = f"{layers[0].name} to {layers[-1].name}"
    if recipe.thresholds is not None:
        steps += f", discretised to -1, 0, 1 at {recipe.thresholds[0]} and {recipe.thresholds[1]}"
    rows = {"features": f"{layers[-1].stop:,}", "layers": f"{len(layers)}, {span}", "training samples": f"{n:,}"}
    if info.training_seconds is not None:
        rows["fitted in"] = in_time(info.training_seconds)
    body = f"""\
{layers[-1].stop:,} features of {len(layers)} layers, {span}, read {recipe.activation} their activation,
{steps}, with the statistics of {n:,} training samples
(Garcia-Gasulla et al., ICBK 2018). The network itself is not in here.
{data_sentence(info)}
{results_table(info)}{footprint_table(rows)}## How to load it

```python
from hf_tl import FullNetworkEmbedding

fne = FullNetworkEmbedding.from_pretrained("{repo_id or "PATH_OR_HUB_ID_OF_THIS"}")
features = fne.transform(samples)
```
"""
    return write_card(
        old,
        title=f"Full-network embedding of {named or 'a network'}",
        body=body,
        info=info,
        metadata={"library_name": "hf_tl", "base_model": named, "tags": TAGS},
        task={"image": "image-feature-extraction", "text": "feature-extraction"}.get(
            embedding.require_network().modality
        ),
    )
