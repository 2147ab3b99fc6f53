"""What the doctor found, as a value: lines of text for a person, plain values for a script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVELS = ("error", "warning", "note")
_TOP = 5  # labels, or sizes, that a line of text names
_TOP_PAIRS = 3
_IN_JSON = 20  # pairs of labels


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        level: `error`: a training would stop at it; `warning`: its figures would mislead; `note`: good to know.
        kind: What it is, in one word or two, for scripts.
        message: What it is, in a sentence.
        count: How many images or labels it concerns.
        examples: Some of them, by id or name.

    Example:
        >>> str(Finding("warning", "rare labels", "labels have fewer than 10 positives", 2, ("owl",)))
        'warning: labels have fewer than 10 positives: owl, ...'
    """

    level: str
    kind: str
    message: str
    count: int
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = f": {', '.join(self.examples)}" if self.examples else ""
        more = ", ..." if self.examples and self.count > len(self.examples) else ""
        return f"{self.level}: {self.message}{named}{more}"


@dataclass(frozen=True)
class Pair:
    """Two labels that are not of one exclusive group.

    Attributes:
        one: The more frequent one.
        other: The other.
        together: Images that have both.
        correlation: Their phi coefficient over the images of which both are known; NaN where one is constant.

    Example:
        >>> Pair("cat", "kitten", together=12, correlation=0.75).to_dict()
        {'one': 'cat', 'other': 'kitten', 'together': 12, 'correlation': 0.75}
    """

    one: str
    other: str
    together: int
    correlation: float

    def to_dict(self) -> dict[str, Any]:
        """Return the pair as plain values, for JSON; NaN is None."""
        known = not np.isnan(self.correlation)
        return vars(self) | {"correlation": round(self.correlation, 6) if known else None}


@dataclass(frozen=True)
class BrokenImplication:
    """An implication that does not hold in some images: they have the child, and the parent is said to be absent.

    Attributes:
        child: What implies.
        parent: What is implied.
        count: The images that lack it.
        examples: Ids of some of them.

    Example:
        >>> BrokenImplication("kitten", "cat", 1, ("im7",)).count
        1
    """

    child: str
    parent: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Diagnosis:
    """What `examine` found.

    Attributes:
        findings: Errors first, then warnings, then notes.
        counts: Label name to its positives in each part, `{"cat": {"train": 3, "val": 1}}`.
        labels_per_image: How many images have 0, 1, 2, ... any-of labels (M,).
        names: Of the labels whose correlation is there, the most frequent first.
        together: (K, K) int64: images that have both labels of `names`.
        correlation: (K, K) float64: phi coefficients of `names`, over the images of which both are known; NaN for
            a label that is constant.
        num_images: Images of each part.
        pairs: The pairs of `names` that are not of one exclusive group, the strongest correlation first.
        implications: What a taxonomy implies and the targets lack, the most frequent first.
        sizes: Height and width to the number of images that have it, the most frequent first; empty where images were
            not looked at.
    """

    findings: tuple[Finding, ...]
    counts: dict[str, dict[str, int]]
    labels_per_image: np.ndarray
    names: tuple[str, ...]
    together: np.ndarray
    correlation: np.ndarray
    num_images: dict[str, int]
    pairs: tuple[Pair, ...] = ()
    implications: tuple[BrokenImplication, ...] = ()
    sizes: dict[tuple[int, int], int] | None = None

    def worst(self) -> str | None:
        """Return the gravest level found, or None."""
        return self.findings[0].level if self.findings else None

    def text(self) -> str:
        """Return the diagnosis as lines of text: findings, then what there is of labels, then how many findings."""
        sizes = ", ".join(f"{name} {size:,}" for name, size in self.num_images.items())
        tally = Counter(finding.level for finding in self.findings)
        found = ", ".join(f"{tally[level]} {level}{'s' * (tally[level] != 1)}" for level in LEVELS)
        return "\n".join([f"images: {sizes}", *map(str, self.findings), *self.facts(), f"found: {found}"])

    def facts(self) -> Iterator[str]:
        """Yield what is neither good nor bad, a line each: sizes, label counts, labels per image, pairs of labels."""
        if self.sizes:
            yield f"image sizes, height x width: {_listed(_named_sizes(self.sizes), len(self.sizes))}"
        totals = {label: sum(counts.values()) for label, counts in self.counts.items()}
        ordered = [f"{label} {totals[label]:,}" for label in sorted(totals, key=lambda label: -totals[label])]
        if len(ordered) <= 2 * _TOP:
            yield f"positives of labels: {', '.join(ordered)}"
        else:
            yield f"positives of labels: {', '.join(ordered[:_TOP])}, ..., {', '.join(ordered[-_TOP:])}"
        spread = ", ".join(f"{k}: {n:,}" for k, n in enumerate(self.labels_per_image.tolist()) if n)
        if spread:  # none where all groups are exclusive
            yield f"labels per image: {spread}"
        often = sorted((pair for pair in self.pairs if pair.together), key=lambda pair: -pair.together)[:_TOP_PAIRS]
        if often:
            yield f"often together: {', '.join(f'{pair.one} + {pair.other} {pair.together:,}' for pair in often)}"
        # NaN is neither above nor below 0.
        for title, chosen in (
            ("correlated", [pair for pair in self.pairs if pair.correlation > 0]),
            ("opposed", [pair for pair in self.pairs if pair.correlation < 0]),
        ):
            strongest = [f"{pair.one} + {pair.other} {pair.correlation:+.2f}" for pair in chosen[:_TOP_PAIRS]]
            if strongest:
                yield f"{title}: {', '.join(strongest)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain values, for JSON; NaN is None."""
        correlation = [
            [None if np.isnan(value) else round(float(value), 6) for value in row] for row in self.correlation
        ]
        return {
            "format": "mlabel.diagnosis/1",
            "images": self.num_images,
            "findings": [vars(finding) | {"examples": list(finding.examples)} for finding in self.findings],
            "implications": [vars(each) | {"examples": list(each.examples)} for each in self.implications],
            "counts": self.counts,
            "labels_per_image": self.labels_per_image.tolist(),
            "sizes": None if self.sizes is None else [[*size, number] for size, number in self.sizes.items()],
            "pairs": [pair.to_dict() for pair in self.pairs[:_IN_JSON]],
            "names": list(self.names),
            "together": self.together.tolist(),
            "correlation": correlation,
        }


def _named_sizes(sizes: dict[tuple[int, int], int]) -> Iterable[str]:
    return (f"{height} x {width} ({number:,})" for (height, width), number in sizes.items())


def _listed(texts: Iterable[str], number: int) -> str:
    """Return the first of `number` texts in a row, and how many are left."""
    shown = [text for text, _ in zip(texts, range(_TOP), strict=False)]
    left = f", and {number - len(shown):,} others" if number > len(shown) else ""
    return ", ".join(shown) + left
