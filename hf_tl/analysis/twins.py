"""Twins: samples that are copies of one another, within a split and across splits.

Images: a perceptual hash of image and mirror (Zauner, 2010; `imagehash`) proposes pairs, the correlation of 48 x 48
luminances decides. The hash alone takes most stripes for copies of other stripes, and luminance finds the grey copies
that a comparison of colours loses. Texts: the Jaccard similarity of 5-character shingles without case and punctuation
(Broder, 1997), found by MinHash (`datasketch`). Anything else: equal content.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from hf_tl.data import Samples
from hf_tl.errors import InputError
from hf_tl.inputs import read_image, read_text


Kind = Literal["identical", "copy", "mirrored", "recoloured"]
HASH_DISTANCE = 14  # of 64 bits; what is no copy is sorted out by its pixels
SIDE = 48  # pixels of the luminances that are compared
ALIKE, ALIKE_SMALL = 0.97, 0.995  # correlation from which on images are copies; where either is a small one
SMALL = 64  # pixels of the shorter side: digits and icons resemble one another
COLOURED, COLOUR_APART = 2.0, 0.5  # mean chroma of 127, and the share of it by which recoloured images differ
SHINGLE, JACCARD, PERMUTATIONS = 5, 0.7, 128
AT_ONCE = 512
DELAY = 3  # seconds before there is a progress bar


@dataclass(frozen=True)
class Pair:
    """Two samples that are copies of one another.

    Attributes:
        first: split and index of one; of a pair across splits the one in the split that comes first.
        second: split and index of the other.
        kind: "identical" in content, "copy" (encoded, scaled or edited), "mirrored", or "recoloured", the same picture
            in other colours, which a series of products or textures is as well.
        similarity: correlation of luminance, or Jaccard similarity of texts; 1 for identical ones.
    """

    first: tuple[str, int]
    second: tuple[str, int]
    kind: Kind
    similarity: float

    @property
    def is_across(self) -> bool:
        """Whether the two are in different splits."""
        return self.first[0] != self.second[0]


@dataclass(frozen=True)
class Twins:
    """The pairs in several splits.

    Attributes:
        pairs: sorted by split and index.
        sizes: split -> number of its samples.
    """

    pairs: tuple[Pair, ...]
    sizes: dict[str, int]

    @property
    def groups(self) -> dict[str, np.ndarray]:
        """Split -> (n_samples,) int: equal numbers are twins of one another, in whichever splits they are.

        Recoloured pairs are in one group: nothing is lost by keeping them on one side of a split.
        """
        starts = dict(zip(self.sizes, np.cumsum([0, *self.sizes.values()]).tolist(), strict=False))
        ends = [[starts[split] + i for split, i in (pair.first, pair.second)] for pair in self.pairs]
        rows, columns = np.array(ends, dtype=int).reshape(-1, 2).T
        n = sum(self.sizes.values())
        graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(n, n))
        _, numbers = connected_components(graph, directed=False)
        return {split: numbers[start : start + self.sizes[split]] for split, start in starts.items()}

    def leaked(self, split: str, *, into: str) -> np.ndarray:
        """(n_samples,) bool: which samples of a split have a copy in another one; recoloured ones do not count.

        Args:
            split: such as "test".
            into: such as "train".
        """
        found = np.zeros(self.sizes[split], dtype=bool)
        for pair in self.pairs:
            ends = dict([pair.first, pair.second])
            if pair.kind != "recoloured" and ends.keys() == {split, into}:
                found[ends[split]] = True
        return found


def find_twins(splits: Sequence[Samples], *, modality: str, progress: bool = True) -> Twins:
    """The samples that are copies of one another; those that cannot be read are left out.

    Args:
        splits: with different names.
        modality: "image", "text"; of "audio" and "array" identical ones alone are found.
        progress: whether a progress bar is drawn, where it takes longer than some seconds.

    Raises:
        InputError: `imagehash` or `datasketch` is not installed.
    """
    sizes = {samples.name: len(samples) for samples in splits}
    if len(sizes) != len(splits):
        raise InputError(f"splits should have different names, got {[samples.name for samples in splits]}")
    places = [(samples.name, i) for samples in splits for i in range(len(samples))]
    finders = {"image": _image_pairs, "text": _text_pairs}
    with tqdm(total=len(places), desc="copies", unit="sample", delay=DELAY, disable=not progress) as bar:
        found = list(finders.get(modality, _equal_pairs)(splits, bar))
    pairs = [Pair(places[i], places[j], kind, similarity) for i, j, kind, similarity in sorted(found)]
    return Twins(tuple(pairs), sizes)


def twin_groups(samples: Samples, *, modality: str) -> np.ndarray:
    """(n_samples,) int: equal numbers are twins; what takes `groups=` keeps them on one side.

    Args:
        samples: of one split.
        modality: see `find_twins`.

    Raises:
        InputError: `imagehash` or `datasketch` is not installed.
    """
    return find_twins([samples], modality=modality).groups[samples.name]


Found = Iterator[tuple[int, int, Kind, float]]


@dataclass(frozen=True)
class _Look:
    """What is kept of an image: hashes of it and of its mirror, a digest, luminance, chroma and size."""

    hashes: tuple[np.ndarray, np.ndarray]
    digest: bytes
    luminance: np.ndarray
    chroma: np.ndarray
    small: bool


def _image_pairs(splits: Sequence[Samples], bar: tqdm) -> Found:
    looks = [one for samples in splits for one in _in_threads(_look_at, samples, bar)]
    known = np.array([i for i, one in enumerate(looks) if one is not None], dtype=int)
    if not len(known):
        return
    kept = [one for one in looks if one is not None]
    plain, mirror = (np.packbits([one.hashes[k] for one in kept], axis=1).view(np.uint64)[:, 0] for k in (0, 1))
    luminance = np.stack([one.luminance for one in kept])
    small = np.array([one.small for one in kept])
    seen: dict[tuple[int, int], tuple[bool, float]] = {}
    for flipped, hashes in ((False, plain), (True, mirror)):
        for i, j in _near(plain, hashes):
            turn = slice(None, None, -1 if flipped else 1)
            alike = _correlation(luminance[i], luminance[j][:, :, turn])
            enough = np.where(small[i] | small[j], ALIKE_SMALL, ALIKE)
            for a, b, value in zip(i[alike >= enough], j[alike >= enough], alike[alike >= enough], strict=True):
                seen.setdefault((int(a), int(b)), (flipped, float(value)))
    for (a, b), (flipped, value) in seen.items():
        yield int(known[a]), int(known[b]), *_kind(kept[a], kept[b], flipped, value)


def _kind(first: _Look, second: _Look, flipped: bool, value: float) -> tuple[Kind, float]:
    if first.digest == second.digest:
        return "identical", 1.0
    chroma = second.chroma[:, ::-1] if flipped else second.chroma
    strength = [float(np.abs(one.chroma).mean()) for one in (first, second)]
    if min(strength) > COLOURED and float(np.abs(first.chroma - chroma).mean()) > COLOUR_APART * max(strength):
        return "recoloured", value
    return ("mirrored" if flipped else "copy"), value


def _look_at(value: object) -> _Look:
    try:
        import imagehash
    except ImportError as error:
        raise InputError("copies among images are found by imagehash: pip install 'hf-tl[audit]'") from error
    image = read_image(value)
    grey = image.convert("L")
    tiny = grey.resize((32, 32), Image.Resampling.LANCZOS)
    mirror = tiny.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    chroma = np.asarray(image.resize((8, 8), Image.Resampling.BOX).convert("YCbCr"), dtype=np.float32)[:, :, 1:] - 128
    return _Look(
        hashes=(imagehash.phash(tiny).hash.ravel(), imagehash.phash(mirror).hash.ravel()),
        digest=hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest(),
        luminance=np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC)),
        chroma=chroma,
        small=min(image.size) < SMALL,
    )


def _in_threads(look: Any, samples: Samples, bar: tqdm) -> list:
    """What `look` makes of each raw input, None of those that cannot be read; the decoders run side by side."""

    def one(index: int) -> object:
        try:
            value = samples[index]
        except Exception:  # whatever a foreign file does to its reader: `find_bad_samples` says what
            return None
        try:
            return look(value)
        except InputError:
            raise
        except Exception:
            return None

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        found = []
        for value in pool.map(one, range(len(samples))):
            found.append(value)
            bar.update()
        return found


def _near(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs i < j whose hashes differ in few bits, some at a time."""
    for start in range(0, len(first), AT_ONCE):
        apart = np.bitwise_count(first[start : start + AT_ONCE, None] ^ second[None, start:])
        i, j = np.nonzero(np.triu(apart <= HASH_DISTANCE, 1))
        for part in range(0, len(i), AT_ONCE):
            yield i[part : part + AT_ONCE] + start, j[part : part + AT_ONCE] + start


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of two images each, (n, side, side) -> (n,); images of one shade are alike if they have the same."""
    x, y = (values.reshape(len(values), -1).astype(np.float32) for values in (first, second))
    flat = (x.std(axis=1) < 1) | (y.std(axis=1) < 1)
    same = np.abs(x - y).max(axis=1, initial=0) < 1
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return np.where(flat, same.astype(np.float32), (x * y).sum(axis=1) / np.maximum(norms, 1e-9))


def _text_pairs(splits: Sequence[Samples], bar: tqdm) -> Found:
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as error:
        raise InputError("copies among texts are found by datasketch: pip install 'hf-tl[audit]'") from error
    texts = [_bare(samples, i) for samples in splits for i in range(len(samples))]
    first: dict[str, int] = {}
    lsh = MinHashLSH(threshold=JACCARD, num_perm=PERMUTATIONS)
    shingles: dict[int, frozenset[str]] = {}
    twins_of: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        bar.update()
        if not text:
            continue
        for other in twins_of.setdefault(text, []):
            yield other, i, "identical", 1.0
        twins_of[text].append(i)
        if text in first:
            continue
        first[text] = i
        shingles[i] = frozenset(text[k : k + SHINGLE] for k in range(max(len(text) - SHINGLE + 1, 1)))
        sketch = MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch([shingle.encode() for shingle in shingles[i]])
        for other in lsh.query(sketch):
            similarity = len(shingles[i] & shingles[other]) / len(shingles[i] | shingles[other])
            if similarity >= JACCARD:
                yield other, i, "copy", similarity
        lsh.insert(i, sketch)


def _bare(samples: Samples, index: int) -> str:
    """A text, "" for one that is none."""
    try:
        return _bare_text(samples[index])
    except (TypeError, ValueError):
        return ""


def _bare_text(value: object) -> str:
    """Without case, punctuation and further blanks; the two of a pair one after the other."""
    text, second = read_text(value)
    return " ".join(re.sub(r"[^\w\s]", "", f"{text} {second or ''}".casefold()).split())


def _equal_pairs(splits: Sequence[Samples], bar: tqdm) -> Found:
    digests = [one for samples in splits for one in _in_threads(_digest, samples, bar)]
    seen: dict[bytes, list[int]] = {}
    for i, digest in enumerate(digests):
        if digest is not None:
            for other in seen.setdefault(digest, []):
                yield other, i, "identical", 1.0
            seen[digest].append(i)


def _digest(value: Any) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("array") if "array" in value else value.get("bytes") or value["path"]
    content = value if isinstance(value, bytes) else np.ascontiguousarray(value).tobytes()
    return hashlib.sha256(content).digest()
