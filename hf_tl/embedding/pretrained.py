"""A fitted embedding as files: layers as JSON, statistics as safetensors, a model card. The network stays where it is.

The files may come from elsewhere: they are data and nothing else. No name found in them is imported, and a
downloaded file names its network by a Hub id or a timm name, never by a path of this machine.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hf_tl.embedding.embedding import LayerColumns, read_layer, read_tensors
from hf_tl.embedding.fingerprint import fingerprint_weights
from hf_tl.embedding.pooling import Pooling
from hf_tl.embedding.recipe import Recipe
from hf_tl.embedding.statistics import Statistics
from hf_tl.embedding.store import STATISTICS
from hf_tl.errors import InputError, in_one_line
from hf_tl.models import Network, load_network


FORMAT = "hf_tl fitted embedding 1"
CONFIG, CARD = "embedding_config.json", "README.md"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w.-]+)?")


@dataclass(frozen=True)
class Fitted:
    """What a fitted `FullNetworkEmbedding` is, its speed apart; the names are those of its arguments."""

    network: Network
    recipe: Recipe
    taps: str | Sequence[str]
    top: float
    pool: str | Pooling | Mapping[str, str | Pooling]
    dtype: str
    layers: Sequence[LayerColumns]
    statistics: Statistics


def save_fitted(fitted: Fitted, folder: str | Path) -> Path:
    """See `FullNetworkEmbedding.save_pretrained`."""
    from safetensors.numpy import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(fitted.statistics.state(), folder / STATISTICS)
    (folder / CONFIG).write_text(json.dumps(_config(fitted), indent=1) + "\n", encoding="utf-8")
    _card(fitted).save(folder / CARD)
    return folder


def push_fitted(fitted: Fitted, repo_id: str, *, private: bool | None, token: str | None) -> str:
    """See `FullNetworkEmbedding.push_to_hub`."""
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        save_fitted(fitted, folder)
        api = HfApi(token=token)
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Add full-network embedding")
    return str(made)


def find_fitted(name: str, revision: str | None) -> Path | None:
    """The folder of a fitted embedding, downloaded where `name` is a Hub id; None for anything else."""
    if (Path(name) / CONFIG).is_file():
        return Path(name)
    if "/" not in name or Path(name).exists() or not HUB_NAME.fullmatch(name):
        return None
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        hf_hub_download(name, CONFIG, revision=revision)
    except (OSError, ValueError):  # no such repository, no such file, no Hub: then it is no fitted embedding
        return None
    return Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, STATISTICS]))


def load_fitted(folder: Path, *, network: Network | None) -> Fitted:
    """The embedding that `save_fitted` wrote, fitted, around its network.

    Args:
        folder: where the files are.
        network: what it reads; None to load the network that the files name.

    Raises:
        InputError: damaged files, or a network that is not the one of the fit.
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
        taps, pool, base, weights = config["taps"], config["pool"], config["base_model"], config["weights"]
        taps = taps if isinstance(taps, str) else [str(tap) for tap in taps]
        top, dtype = float(config["top"]), str(config["dtype"])
    except (OSError, KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"the fitted embedding in {str(folder)!r} is damaged: {in_one_line(error)}") from error
    if network is None:
        _check_name(base, folder)
        network = load_network(base, image_size=config.get("image_size"), revision=config.get("revision"))
    if fingerprint_weights(network.model) != weights:
        raise InputError(
            f"the embedding in {str(folder)!r} was fitted on {base!r} with other weights than {network.name!r} has "
            f"here; load the network of the fit, or fit again"
        )
    return Fitted(network, recipe, taps, top, pool, dtype, layers, statistics)


def _config(fitted: Fitted) -> dict:
    parts = fitted.pool.values() if isinstance(fitted.pool, Mapping) else [fitted.pool]
    if not all(isinstance(part, str) for part in parts):
        raise InputError("a pooling of your own cannot be written to a file; use one of the named poolings")
    return {
        "format": FORMAT,
        "base_model": fitted.network.name,
        "revision": fitted.network.revision,
        "image_size": fitted.network.image_size,
        "weights": fingerprint_weights(fitted.network.model),
        "recipe": asdict(fitted.recipe),
        "taps": fitted.taps if isinstance(fitted.taps, str) else list(fitted.taps),
        "top": fitted.top,
        "pool": dict(fitted.pool) if isinstance(fitted.pool, Mapping) else fitted.pool,
        "dtype": fitted.dtype,
        "layers": [asdict(layer) for layer in fitted.layers],
    }


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


def _card(fitted: Fitted) -> object:
    from huggingface_hub import ModelCard, ModelCardData

    named = fitted.network.name if "/" in fitted.network.name and HUB_NAME.fullmatch(fitted.network.name) else None
    data = ModelCardData(
        library_name="hf_tl",
        base_model=named,
        tags=["feature-extraction", "full-network-embedding", "transfer-learning"],
    )
    recipe = fitted.recipe
    steps = {"standardize": "standardised", "l2-layer": "each layer at length 1", "none": "not scaled"}[recipe.scale]
    span = f"{fitted.layers[0].name} to {fitted.layers[-1].name}"
    if recipe.thresholds is not None:
        steps += f", discretised to -1, 0, 1 at {recipe.thresholds[0]} and {recipe.thresholds[1]}"
    return ModelCard(f"""---
{data.to_yaml()}
---

# Full-network embedding of {fitted.network.name}

{fitted.layers[-1].stop:,} features of {len(fitted.layers)} layers, {span}, read {recipe.activation} their activation,
{steps}, with the statistics of {fitted.statistics.n:,} training rows
(Garcia-Gasulla et al., ICBK 2018). The network itself is not in here.

```python
from hf_tl import FullNetworkEmbedding

fne = FullNetworkEmbedding.from_pretrained("PATH_OR_HUB_ID_OF_THIS")
features = fne.transform(rows)
```
""")
