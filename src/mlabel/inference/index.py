"""The search index: the highest scores of many images on the disk, by label, for queries over millions of images.

A folder with `index.json` and plain arrays, little-endian, mapped into memory and never read whole:

    offsets.bin       int64 (L + 1,): entries of label j are offsets[j] to offsets[j + 1]
    images.bin        uint32 (E,): their images, ascending within a label
    scores.bin        float32 (E,): their scores
    names.bin         UTF-8 of all image names, one after the other
    name_offsets.bin  int64 (N + 1,): where each name begins
    features.bin      float32 (N, D), of length 1 each; only where features were kept

Of an image at most `top` scores are kept, and none below `floor`; a score that was not kept counts as `floor`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from mlabel._checks import DataError, check_between, check_positive, suggest, to_numpy
from mlabel._files import own_file, read_json
from mlabel.inference.query import Either, Node, Term, parse_query, terms
from mlabel.labels import LabelSpace

FORMAT = "mlabel.index/1"
MAX_NAME = 2**16  # bytes of the name of an image
SURE = 1e-7  # a score counts as at least this far from 0 and from 1
_TYPES = {"offsets": "<i8", "images": "<u4", "scores": "<f4", "names": "u1", "name_offsets": "<i8", "features": "<f4"}
_MAX_IMAGES = 2**32  # what their type can number
_BLOCK = 2**19  # images that a query looks at together
_COMPARE: dict[str, Callable[[Any, float], Any]] = {
    ">": np.greater,
    ">=": np.greater_equal,
    "<": np.less,
    "<=": np.less_equal,
}


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        image: Its name in the index.
        row: Its number there.
        score: The probability that the query holds for it; for `SearchIndex.like` the cosine of the features' angle.
        scores: What the index holds of the labels of the query, by name; a score below its floor is missing.

    Example:
        >>> Hit("a.jpg", 0, 0.9, {"cat": 0.9}).scores["cat"]
        0.9
    """

    image: str
    row: int
    score: float
    scores: dict[str, float]


class _Found(NamedTuple):
    """What a part of a query says of some images: the logarithm of its probability, or of its complement's."""

    log: np.ndarray  # (n,) float64
    is_complement: bool
    passes: np.ndarray | None  # (n,) bool: not left out by a comparison; None: all
    seen: np.ndarray  # (n,) bool: a score of a wanted label was kept


class SearchIndex:
    """A search index on the disk.

    Args:
        folder: Which `build_index` wrote. Nothing outside it is read.

    Attributes:
        space: The labels.
        num_images: How many images it holds.
        num_features: D of the features; 0 where none were kept.
        top, floor: See `build_index`.

    Raises:
        FileNotFoundError: there is no index.
        DataError: a file is not what `build_index` wrote; the message names it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "index.json").is_file():
            raise FileNotFoundError(f"{folder} is not an index: there is no index.json in it")
        self._describe(read_json(own_file(self.folder, "index.json")))
        shapes: dict[str, tuple[int, ...]] = {
            "offsets": (self.space.num_labels + 1,),
            "images": (self._num_entries,),
            "scores": (self._num_entries,),
            "name_offsets": (self.num_images + 1,),
        }
        if self.num_features:
            shapes["features"] = (self.num_images, self.num_features)
        self._arrays = {name: self._open(name, shape) for name, shape in shapes.items()}
        self._arrays["names"] = self._open("names", (self._end("name_offsets"),))
        if self._end("offsets") != self._num_entries:
            raise DataError(f"{self.folder / 'offsets.bin'}: does not fit the {self._num_entries:,} entries")

    def __len__(self) -> int:
        return self.num_images

    def search(self, query: str, *, top: int = 20, min_score: float = 0.0) -> list[Hit]:
        """Return the images for which a query holds most probably, the best first.

        Images of one score stand in the order of the index. Where the query wants a label at all, an image of which
        no wanted label was kept is no result.

        Args:
            query: In the language of `mlabel.inference.query`.
            top: How many at most.
            min_score: The lowest score of a result.

        Raises:
            ValueError: not a query, a label that the index does not have (the nearest are named), or a comparison with
                a number below the index's floor.
            DataError: the index is damaged.
        """
        check_positive(top, "top")
        check_between(min_score, 0.0, 1.0, "min_score")
        node = parse_query(query)
        wanted = list(terms(node))
        for term in wanted:
            self._check_term(term)
        rows, scores = np.zeros(0, dtype=np.int64), np.zeros(0)
        needs_seen = any(term.wanted for term in wanted)
        for start in range(0, self.num_images, _BLOCK):
            found = self._evaluate(node, start, min(start + _BLOCK, self.num_images))
            keep, values = _best(found, needs_seen, top)
            rows, scores = np.concatenate([rows, keep + start]), np.concatenate([scores, values])
        order = np.lexsort((rows, -scores))[:top]
        best = [(int(rows[place]), float(expit(scores[place]))) for place in order]
        return [self._hit(row, score, wanted) for row, score in best if score >= min_score]

    def like(self, features: Any, *, top: int = 20) -> list[Hit]:
        """Return the images whose features point most nearly where `features` (D,) do, the best first.

        Args:
            features: Such as `Tagger.features` gives, (D,).
            top: How many, 1 or more.

        Raises:
            ValueError: the index holds no features, or of another length.
        """
        check_positive(top, "top")
        if not self.num_features:
            raise ValueError(f"{self.folder} holds no features; make the index with them")
        one = to_numpy(features).astype(np.float64)
        if one.shape != (self.num_features,) or not np.isfinite(one).all():
            raise ValueError(f"features must be finite and ({self.num_features},); got {one.shape}")
        from sklearn.neighbors import NearestNeighbors

        # Of unit vectors the nearest by distance are those of the smallest angle, and no copy is made of them.
        search = NearestNeighbors(n_neighbors=min(top, self.num_images), algorithm="brute")
        search.fit(self._arrays["features"])
        distances, rows = search.kneighbors(unit_rows(one[None]).astype(np.float32))
        order = np.lexsort((rows[0], distances[0]))
        return [self._hit(int(rows[0][place]), float(1 - distances[0][place] ** 2 / 2), ()) for place in order]

    def name(self, row: int) -> str:
        """Return the name of the image in `row`.

        Raises:
            DataError: the index is damaged there.
        """
        first, last = self._arrays["name_offsets"][row : row + 2].tolist()
        if not 0 <= first <= last <= min(len(self._arrays["names"]), first + MAX_NAME):
            raise DataError(f"{self.folder / 'name_offsets.bin'}: wrong at image {row}")
        try:
            return bytes(self._arrays["names"][first:last]).decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{self.folder / 'names.bin'}: the name of image {row} is not UTF-8") from error

    def entries(self, label: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the images (E,) of which a score of `label` was kept, ascending, and those scores (E,).

        Raises:
            ValueError: there is no such label.
            DataError: the index is damaged.
        """
        return self._postings(self._column(label), 0, self.num_images)

    def _describe(self, about: Any) -> None:
        path = self.folder / "index.json"
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise DataError(f"{path}: an index of format {FORMAT!r} was wanted")
        try:
            self.space = LabelSpace.from_dict(about["space"])
            self.num_images, self._num_entries, self.num_features, self.top = (
                _whole(about[name]) for name in ("num_images", "num_entries", "num_features", "top")
            )
            check_between(self.num_images, 1, _MAX_IMAGES, "num_images")
            self.floor = float(about["floor"])
            check_between(self.floor, SURE, 1.0, "floor")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not an index: {error}") from error

    def _open(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        try:
            path = own_file(self.folder, f"{name}.bin")
        except FileNotFoundError as error:
            raise DataError(str(error)) from None
        return map_array(path, _TYPES[name], shape)

    def _end(self, name: str) -> int:
        """Return the last of some offsets, which must begin with 0."""
        offsets = self._arrays[name]
        if offsets[0] != 0 or offsets[-1] < 0:
            raise DataError(f"{self.folder / name}.bin: offsets must begin with 0")
        return int(offsets[-1])

    def _column(self, label: str) -> int:
        if label not in self.space.names:
            raise ValueError(f"the index has no label {label!r}; {suggest(label, self.space.names)}")
        return self.space.index(label)

    def _check_term(self, term: Term) -> None:
        self._column(term.name)
        if term.compare is not None and term.bound < self.floor:
            raise ValueError(f"{term.name}{term.compare}{term.bound:g}: the index keeps scores from {self.floor:g} on")

    def _postings(self, column: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the images from `start` to `stop` of which a label's score was kept, and those scores."""
        first, last = self._arrays["offsets"][column : column + 2].tolist()
        if not 0 <= first <= last <= self._num_entries:
            raise DataError(f"{self.folder / 'offsets.bin'}: wrong at label {column}")
        images = self._arrays["images"][first:last]
        if (start, stop) != (0, self.num_images):
            low, high = np.searchsorted(images, [start, stop]).tolist()
            images, first, last = images[low:high], first + low, first + high
        if last - first > stop - start:  # before anything is read: of an image a label has one score
            raise DataError(f"{self.folder / 'offsets.bin'}: more entries of label {column} than there are images")
        images, scores = np.asarray(images), np.asarray(self._arrays["scores"][first:last])
        if len(images):
            if images[0] < start or images[-1] >= stop or not (images[1:] > images[:-1]).all():
                raise DataError(f"{self.folder / 'images.bin'}: the images of label {column} are out of order or range")
            if not (scores.min() >= 0 and scores.max() <= 1):
                raise DataError(f"{self.folder / 'scores.bin'}: the scores of label {column} leave [0, 1]")
        return images, scores

    def _evaluate(self, node: Node, start: int, stop: int) -> _Found:
        if isinstance(node, Term):
            return self._evaluate_term(node, start, stop)
        parts = [self._evaluate(part, start, stop) for part in node.parts]
        join = _either if isinstance(node, Either) else _both
        return join(parts, [part.weight for part in node.parts])

    def _evaluate_term(self, term: Term, start: int, stop: int) -> _Found:
        images, scores = self._postings(self._column(term.name), start, stop)
        places = images.astype(np.int64) - start
        sure = scores.astype(np.float64).clip(SURE, 1 - SURE)
        logs = np.full(stop - start, np.log(self.floor) if term.wanted else np.log1p(-self.floor))
        logs[places] = np.log(sure) if term.wanted else np.log1p(-sure)
        seen = np.zeros(stop - start, dtype=bool)
        if term.wanted:
            seen[places] = True
        passes = None
        if term.compare is not None:
            obeys = _COMPARE[term.compare]
            passes = np.full(stop - start, not term.wanted)  # a score that was not kept is below the floor
            passes[places] = obeys(scores, term.bound)
        return _Found(logs, False, passes, seen)

    def _hit(self, row: int, score: float, wanted: Sequence[Term]) -> Hit:
        scores = {}
        for term in wanted:
            images, held = self._postings(self._column(term.name), row, row + 1)
            if len(images):
                scores[term.name] = float(held[0])
        return Hit(self.name(row), row, score, scores)


def _both(parts: Sequence[_Found], weights: Sequence[float]) -> _Found:
    logs = sum(weight * _log(part) for weight, part in zip(weights, parts, strict=True))
    passes: np.ndarray | None = None
    for part in parts:
        passes = part.passes if passes is None else passes if part.passes is None else passes & part.passes
    return _Found(np.asarray(logs), False, passes, np.logical_or.reduce([part.seen for part in parts]))


def _either(parts: Sequence[_Found], weights: Sequence[float]) -> _Found:
    total = np.zeros(len(parts[0].log))
    for weight, part in zip(weights, parts, strict=True):
        complement = weight * _log_complement(part)
        total += complement if part.passes is None else np.where(part.passes, complement, 0.0)
    filters = [part.passes for part in parts if part.passes is not None]
    passes = np.logical_or.reduce(filters) if len(filters) == len(parts) else None
    return _Found(total, True, passes, np.logical_or.reduce([part.seen for part in parts]))


def _log(part: _Found) -> np.ndarray:
    return _one_less(part.log) if part.is_complement else part.log


def _log_complement(part: _Found) -> np.ndarray:
    return part.log if part.is_complement else _one_less(part.log)


def _one_less(log: np.ndarray) -> np.ndarray:
    """Return log(1 - exp(log)), for log <= 0."""
    with np.errstate(divide="ignore"):
        return np.log(-np.expm1(log))


def _best(found: _Found, needs_seen: bool, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places (n,) of the best images, and their log-odds (n,)."""
    # Both are monotone in the log-odds, so only those of the best need be computed.
    ranked = -found.log if found.is_complement else found.log
    allowed = found.passes
    if needs_seen:
        allowed = found.seen if allowed is None else allowed & found.seen
    places = np.arange(len(ranked)) if allowed is None else np.flatnonzero(allowed)
    if len(places) > top:
        values = ranked[places]
        last = np.partition(values, len(values) - top)[len(values) - top]
        # Of those as good as the last one, the first ones of the index.
        better = int((values > last).sum())
        places = np.sort(np.concatenate([places[values > last], places[values == last][: top - better]]))
    few = _Found(found.log[places], found.is_complement, None, found.seen)
    return places, _log(few) - _log_complement(few)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Return rows of length 1 that point where those given do."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"a whole number was wanted; got {value!r}")
    return value


def map_array(path: Path, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a file as an array, in memory only where it is touched."""
    wanted = int(np.prod(shape, dtype=object)) * np.dtype(kind).itemsize
    if path.stat().st_size != wanted:
        raise DataError(f"{path}: {wanted:,} bytes were wanted; got {path.stat().st_size:,}")
    return np.memmap(path, kind, "r", shape=shape) if wanted else np.zeros(shape, kind)
