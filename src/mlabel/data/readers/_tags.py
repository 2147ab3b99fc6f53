"""Tags of many images: gathered as numbers, and made labels by how frequent they are or by a vocabulary."""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from mlabel._checks import DataError
from mlabel.data.readers._lines import shown
from mlabel.data.readers.selected_tags import read_selected_tags
from mlabel.labels import Group, LabelSpace

Vocabulary = LabelSpace | Sequence[str] | str | Path


def as_vocabulary(vocabulary: Vocabulary) -> LabelSpace:
    """Return a vocabulary as a label space.

    Args:
        vocabulary: The space itself; a list of tags, which becomes the any-of group "tags"; or the path of a file that
            holds one: a tagger's `selected_tags.csv`, or a space saved as JSON.
    """
    if isinstance(vocabulary, LabelSpace):
        return vocabulary
    if isinstance(vocabulary, str | Path):
        path = Path(vocabulary)
        return read_selected_tags(path).space if path.suffix.lower() == ".csv" else LabelSpace.load(path)
    return LabelSpace([Group("tags", vocabulary)])


class TagRows:
    """Rows of tags: each tag is a number from its first use on, so that a row is numbers and not a list of texts."""

    def __init__(self) -> None:
        self._codes = _Codes()
        self._entries = array("i")
        self._ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, tags: Iterable[str]) -> None:
        """Add the tags of one image. Space around a tag is dropped, and a tag given twice counts once.

        Raises:
            ValueError: a tag with a newline or NUL, or two spellings that Unicode's form NFC makes one.
        """
        self._entries.extend(map(self._codes.__getitem__, dict.fromkeys(tag for text in tags if (tag := text.strip()))))
        self._ends.append(len(self._entries))

    def frequent(self, min_count: int, source: str | Path) -> list[str]:
        """Return the tags on at least `min_count` images, the most frequent first, equal ones by name.

        Raises:
            ValueError: `min_count` is below 1.
            DataError: there is none; the message names `source`.
        """
        if min_count < 1:
            raise ValueError(f"min_count must be 1 or more; got {min_count}")
        counts = self._counts()
        kept = sorted((-counts[code], tag) for tag, code in self._codes.names.items() if counts[code] >= min_count)
        if not kept:
            raise DataError(
                f"{source}: no tag is on {min_count} images or more; the most frequent is on {max(counts, default=0)}"
            )
        return [tag for _, tag in kept]

    def targets(self, names: Sequence[str]) -> sp.csr_array:
        """Return targets (N, L) of which column k is the tag `names[k]`; other tags are left out."""
        lookup = np.full(len(self._codes.names), -1, dtype=np.int32)
        for column, name in enumerate(names):
            if name in self._codes.names:
                lookup[self._codes.names[name]] = column
        columns = lookup[np.frombuffer(self._entries, dtype=np.int32)]
        kept = columns >= 0
        indptr = np.concatenate([[0], np.cumsum(kept)])[np.frombuffer(self._ends, dtype=np.int64)]
        if indptr[-1] < 1 << 31:  # else SciPy would make the columns int64 too, twice as large as they need be
            indptr = indptr.astype(np.int32)
        data = np.ones(int(indptr[-1]), dtype=np.uint8)
        targets = sp.csr_array((data, columns[kept], indptr), shape=(len(self), len(names)))
        targets.sort_indices()
        return targets

    def outside(self, names: Iterable[str], source: str | Path) -> list[str]:
        """Return a note on the tags that are none of `names`, or no note where there are none.

        Raises:
            DataError: there are tags, and all are outside; the message names `source`.
        """
        known = set(names)
        counts = self._counts()
        left = [counts[code] for tag, code in self._codes.names.items() if tag not in known]
        if left and len(left) == len(counts):
            first = shown(next(iter(self._codes)))
            raise DataError(f"{source}: none of its {len(left):,} tags is in the vocabulary, the first is {first}")
        return [outside_note(len(left), sum(left), "tags")] if left else []

    def _counts(self) -> list[int]:
        entries = np.frombuffer(self._entries, dtype=np.int32)
        counts: list[int] = np.bincount(entries, minlength=len(self._codes.names)).tolist()
        return counts


def outside_note(num_labels: int, uses: int, what: str) -> str:
    """Return the sentence that says what a vocabulary left out."""
    return f"{num_labels:,} {what} are not in the vocabulary and were left out ({uses:,} uses)"


class _Codes(dict[str, int]):
    """Tag to code. A tag not met before gets the next code when it is looked up.

    Attributes:
        names: Code by the tag in Unicode form NFC, in which labels are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, int] = {}

    def __missing__(self, tag: str) -> int:
        if "\n" in tag or "\r" in tag or "\0" in tag:
            raise ValueError(f"a tag must not hold a newline or NUL; found {shown(tag)}")
        name = unicodedata.normalize("NFC", tag)
        if name in self.names:
            other = next(known for known, code in self.items() if code == self.names[name])
            raise ValueError(f"tags {ascii(other)[:80]} and {ascii(tag)[:80]} are one name in Unicode form NFC")
        code = self[tag] = self.names[name] = len(self)
        return code
