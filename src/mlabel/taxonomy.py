"""What label names have to do with each other: aliases, implications, hints at exclusion.

An alias is another name of a label; an implication says that who has the child has the parent, too (a kitten is a cat);
a hint says that labels seldom hold together. A `Taxonomy` knows them for one label space: it makes targets and scores
agree with the implications, and counts where they do not.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from mlabel._checks import DataError, as_csr, as_scores, as_unknown, suggest
from mlabel._files import read_json, to_json, write_atomically
from mlabel.labels import LabelSpace

_FORMAT = "mlabel.taxonomy/1"
_NONE: Mapping[str, str] = MappingProxyType({})
# Products of targets and closure are counted in blocks of rows, and scores in blocks of so many gathered values.
_ROWS = 1 << 16
_VALUES = 1 << 22


@dataclass(frozen=True, eq=False, repr=False)
class Taxonomy:
    """Aliases, implications and hints at exclusion between the labels of a space.

    Names need not be in the space. Aliases are resolved first, so that an implication is one between what its names
    stand for; implications are followed through names outside the space, so that `kitten` implies `animal` by way of
    `cat` where `cat` is no label. A label that is itself an alias of something implies it.

    Columns of exclusive groups are never changed: their labels can imply others, and an implication towards one of
    them is counted by `violation_rate` and `implied_missing`, but not enforced, as it could give a group two labels.

    Args:
        space: The meaning of the L columns.
        aliases: Another name to the name it stands for, which may be an alias again.
        implications: Pairs (child, parent). A pair given twice counts once; one whose ends are aliases of one name
            says nothing and is dropped.
        exclusive_hints: Sets of names of which seldom more than one holds. They are counted, never enforced.

    Raises:
        ValueError: a cycle of aliases or of implications (the message shows it), an implication between two labels of
            one exclusive group, a hint of fewer than two names, or one of two labels that imply each other.
        TypeError: names that are no texts, or aliases, pairs or hints of another form.

    Attributes:
        space: The label space.
        aliases: Each alias to the name at the end of its chain.
        implications: The different pairs (child, parent) after aliases, sorted.
        exclusive_hints: The hints, a tuple of tuples of names after aliases; names outside the space among them.
        closure: CSR bool (L, L): row i is True at what label i implies, directly or not. It is transitive, and no
            label implies itself.

    Example:
        >>> from mlabel.labels import Group
        >>> space = LabelSpace([Group("tags", ["kitten", "animal", "tree"])])
        >>> taxonomy = Taxonomy(space, aliases={"kitty": "cat"}, implications=[("kitten", "kitty"), ("cat", "animal")])
        >>> taxonomy
        Taxonomy(3 labels, 1 aliases, 2 implications, 1 implied pairs of labels, 0 exclusive hints)
        >>> taxonomy.resolve("kitty"), taxonomy.ancestors("kitten")
        ('cat', ('animal',))
        >>> targets, unknown = taxonomy.close_targets([[1, 0, 0], [0, 0, 1]])
        >>> targets.toarray()
        array([[1, 1, 0],
               [0, 0, 1]], dtype=uint8)
        >>> taxonomy.consistent_scores(np.array([[0.75, 0.5, 0.25]]))
        array([[0.75, 0.75, 0.25]])
    """

    space: LabelSpace
    aliases: dict[str, str]
    implications: tuple[tuple[str, str], ...]
    exclusive_hints: tuple[tuple[str, ...], ...]
    closure: sp.csr_array

    def __init__(
        self,
        space: LabelSpace,
        *,
        aliases: Mapping[str, str] = _NONE,
        implications: Iterable[tuple[str, str]] = (),
        exclusive_hints: Iterable[Iterable[str]] = (),
    ) -> None:
        object.__setattr__(self, "space", space)
        object.__setattr__(self, "aliases", resolve_aliases(aliases))
        object.__setattr__(self, "implications", _resolve_pairs(implications, self.aliases))
        object.__setattr__(self, "closure", _closure(self._parents, space.names))
        _refuse_exclusive_pairs(self.closure, space)
        hints = tuple(self._read_hint(hint, place) for place, hint in enumerate(exclusive_hints))
        object.__setattr__(self, "exclusive_hints", hints)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Taxonomy) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return (
            f"Taxonomy({self.space.num_labels} labels, {len(self.aliases)} aliases, {len(self.implications)} "
            f"implications, {self.closure.nnz} implied pairs of labels, {len(self.exclusive_hints)} exclusive hints)"
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the space and all relations, as hexadecimal text."""
        text = json.dumps(self.to_dict(), ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def resolve(self, name: str) -> str:
        """Return the name that `name` stands for: the end of its chain of aliases, or itself where it is no alias.

        Raises:
            TypeError: a name that is no text.
        """
        name = _name(name)
        return self.aliases.get(name, name)

    def ancestors(self, name: str) -> tuple[str, ...]:
        """Return the labels of the space that `name` implies, in column order.

        Args:
            name: A label, an alias, or a name outside the space that an implication has.

        Raises:
            ValueError: nothing is known of such a name.
            TypeError: a name that is no text.
        """
        name = _name(name)
        name = name if name in self.space else self.resolve(name)
        if name not in self.space and name not in self._parents:
            raise ValueError(f"neither a label, an alias nor an implication has {name!r}; {suggest(name, self._known)}")
        names = self.space.names
        return tuple(names[column] for column in sorted(self._columns_above(name)))

    def close_targets(self, targets: Any, unknown: Any = None) -> tuple[sp.csr_array, sp.csr_array | None]:
        """Return targets, and what is unknown of them, in which each known present label brings its ancestors.

        What is implied becomes known and present, whether it was unknown or (wrongly) absent before; `implied_missing`
        says where it was absent. Nothing else changes.

        Args:
            targets: What holds, (N, L), NumPy, torch or sparse; at unknown entries its values are not looked at.
            unknown: Sparse bool (N, L), True = unknown, or a dense bool mask, True = known. None: all is known.

        Returns:
            Targets, CSR uint8 (N, L), and unknowns, CSR bool (N, L), or None where all is known.
        """
        present, doubtful = self._read(targets, unknown)
        implied = sp.csr_array(present @ self._enforced)
        closed = sp.csr_array(present + implied).astype(np.uint8)
        closed.sort_indices()
        if doubtful is not None:
            doubtful = sp.csr_array(doubtful > implied)
            doubtful = doubtful if doubtful.nnz else None
        return closed, doubtful

    def implied_missing(self, targets: Any, unknown: Any = None) -> sp.csr_array:
        """Return where a label is known to be absent although a present one implies it: CSR bool (N, L).

        Its `nnz` is the number of corrections that `close_targets` makes, where no exclusive label is implied.

        Args:
            targets: Targets or decisions, (N, L), NumPy, torch or sparse.
            unknown: Sparse bool (N, L), True = unknown, or a dense bool mask, True = known. None: all is known.
        """
        present, doubtful = self._read(targets, unknown)
        missing = sp.csr_array((present @ self.closure) > present)
        missing = missing if doubtful is None else sp.csr_array(missing > doubtful)
        missing.sort_indices()
        return missing

    def violation_rate(self, decisions: Any, unknown: Any = None) -> float:
        """Return of the implications that apply, the share that is broken: 0 where all are kept.

        An implication, a True entry (child, parent) of `closure`, applies in a row where the child is present and the
        parent is known; it is broken where the parent is absent. NaN where none applies.

        Args:
            decisions: Decisions or targets, (N, L), NumPy, torch or sparse.
            unknown: Sparse bool (N, L), True = unknown, or a dense bool mask, True = known. None: all is known.
        """
        present, doubtful = self._read(decisions, unknown)
        closure = self.closure.astype(np.int64)
        applied = kept = 0
        for start in range(0, present.shape[0], _ROWS):
            rows = present[start : start + _ROWS]
            # How many present labels of the row imply each label.
            children = sp.csr_array(rows.astype(np.int64) @ closure)
            applied += int(children.sum())
            kept += int(children.multiply(rows).sum())
            if doubtful is not None:
                applied -= int(children.multiply(doubtful[start : start + _ROWS]).sum())
        return (applied - kept) / applied if applied else float("nan")

    def exclusive_violations(self, decisions: Any, unknown: Any = None) -> sp.csr_array:
        """Return in which rows two labels or more of a hint are present: CSR bool (N, hints).

        Column h is `exclusive_hints[h]`; `.sum(axis=0)` counts the rows of each hint.

        Args:
            decisions: Decisions or targets, (N, L), NumPy, torch or sparse.
            unknown: Sparse bool (N, L), True = unknown, or a dense bool mask, True = known. None: all is known.
        """
        present, _ = self._read(decisions, unknown)
        members = [[self.space.index(name) for name in hint if name in self.space] for hint in self.exclusive_hints]
        together = _bool_csr(members, self.space.num_labels).T
        held = sp.csr_array(present.astype(np.int64) @ together.astype(np.int64))
        held.sort_indices()
        return sp.csr_array(held > 1)

    def consistent_scores(self, scores: Any) -> Any:
        """Return scores in which no label is below one that implies it: max(own, those of all descendants).

        Rows that agree already stay as they are, and so do the columns of exclusive groups. One threshold for all
        labels then gives decisions without violations; with a threshold a label, close the decisions instead.

        Args:
            scores: Probabilities (N, L), NumPy or torch on any device. Logits will do where no exclusive label implies
                another, as the logits of a softmax do not compare to others.

        Returns:
            Scores of the same kind; gradients of torch tensors go to the label that gave the maximum.

        Raises:
            ValueError: another shape, or scores that are not finite.

        Reference:
            E. Giunchiglia, T. Lukasiewicz. Coherent Hierarchical Multi-Label Classification Networks (2020).
        """
        if isinstance(scores, torch.Tensor):
            self._check_columns(scores.shape)
            if not torch.isfinite(scores).all():
                raise ValueError("scores must be finite; some entries are NaN or infinite")
            return self._raise_ancestors(scores)
        array = as_scores(scores)
        self._check_columns(array.shape)
        return self._raise_ancestors(torch.from_numpy(np.array(array))).numpy()

    def most_specific(self, decisions: Any) -> Any:
        """Return decisions without the labels that another decided one implies; `close_targets` brings them back.

        Args:
            decisions: Decisions (N, L), NumPy, torch or sparse.

        Returns:
            Decisions of the same kind, bool: a NumPy array, a torch tensor on the same device, or CSR.
        """
        present, _ = self._read(decisions, None)
        kept = sp.csr_array(present > (present @ self._enforced))
        kept.sort_indices()
        if sp.issparse(decisions):
            return kept
        if isinstance(decisions, torch.Tensor):
            return torch.from_numpy(kept.toarray()).to(decisions.device)
        return kept.toarray()

    def to_dict(self) -> dict[str, Any]:
        """Return the taxonomy as plain lists and texts, for JSON; `from_dict` reads it."""
        return {
            "format": _FORMAT,
            "labels": self.space.to_dict(),
            "aliases": dict(sorted(self.aliases.items())),
            "implications": [list(pair) for pair in self.implications],
            "exclusive_hints": [list(hint) for hint in self.exclusive_hints],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], space: LabelSpace | None = None) -> Taxonomy:
        """Return the taxonomy that `to_dict` described.

        Args:
            data: Its description. Relations that are left out are none.
            space: For which space. None: the one under "labels".

        Raises:
            DataError: not of that form, or relations that a taxonomy refuses.
        """
        if data.get("format") != _FORMAT:
            raise DataError(f"a taxonomy of format {_FORMAT!r} was wanted; got {data.get('format')!r}")
        if space is None and "labels" not in data:
            raise DataError("this taxonomy names no labels; give the space that it is for")
        try:
            return cls(
                LabelSpace.from_dict(data["labels"]) if space is None else space,
                aliases=data.get("aliases", {}),
                implications=data.get("implications", ()),
                exclusive_hints=data.get("exclusive_hints", ()),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"not a taxonomy: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the taxonomy, with its space, as JSON to the file `path`."""
        write_atomically(path, to_json(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path, space: LabelSpace | None = None) -> Taxonomy:
        """Return the taxonomy in the file `path`, for its own space or for another one.

        Args:
            path: A file that `save` wrote, or one written by hand: an object with "format" and any of "aliases",
                "implications", "exclusive_hints".
            space: For which space. None: the one in the file.

        Raises:
            FileNotFoundError: there is no such file.
            DataError: the file is not JSON, or not a taxonomy.
        """
        data = read_json(path)
        if not isinstance(data, dict):
            raise DataError(f"{path}: not a taxonomy: an object was wanted; got {type(data).__name__}")
        try:
            return cls.from_dict(data, space)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    @cached_property
    def _parents(self) -> dict[str, list[str]]:
        """Each name of the implications, and each label that is an alias, to what it implies directly."""
        parents: dict[str, list[str]] = {}
        for child, parent in self.implications:
            parents.setdefault(child, []).append(parent)
            parents.setdefault(parent, [])
        for name in self.space.names:
            if name in self.aliases:
                parents[name] = [self.aliases[name]]
                parents.setdefault(self.aliases[name], [])
        return parents

    @cached_property
    def _known(self) -> list[str]:
        return [*{*self.space.names, *self.aliases, *self._parents}]

    @cached_property
    def _enforced(self) -> sp.csr_array:
        """The closure without its columns of exclusive groups; transitive as well."""
        pairs = sp.coo_array(self.closure)
        rows, columns = pairs.coords
        kept = self.space.any_of[columns]
        enforced = sp.coo_array((pairs.data[kept], (rows[kept], columns[kept])), shape=pairs.shape)
        return sp.csr_array(enforced)

    def _columns_above(self, name: str) -> set[int]:
        """Return the columns of the labels that a name implies."""
        if name in self.space:
            column = self.space.index(name)
            return set(self.closure.indices[self.closure.indptr[column] : self.closure.indptr[column + 1]].tolist())
        found: set[int] = set()
        seen, waiting = {name}, [name]
        while waiting:
            for parent in self._parents.get(waiting.pop(), ()):
                if parent in self.space:
                    found |= {self.space.index(parent)} | self._columns_above(parent)
                elif parent not in seen:
                    seen.add(parent)
                    waiting.append(parent)
        return found

    def _read_hint(self, hint: Iterable[str], place: int) -> tuple[str, ...]:
        if isinstance(hint, str) or not isinstance(hint, Iterable):
            raise TypeError(f"exclusive hint {place} must be a list of names; got {hint!r}")
        given = [_name(name) for name in hint]
        names = tuple(dict.fromkeys(name if name in self.space else self.aliases.get(name, name) for name in given))
        if len(names) < 2:
            raise ValueError(f"exclusive hint {place} must have two different names or more; got {given}")
        columns = [self.space.index(name) for name in names if name in self.space]
        pairs = sp.coo_array(self.closure[columns][:, columns])
        if pairs.nnz:
            child, parent = (self.space.names[columns[axis[0]]] for axis in pairs.coords)
            raise ValueError(f"exclusive hint {place} has {child!r} and {parent!r}, but {child!r} implies {parent!r}")
        return names

    def _read(self, values: Any, unknown: Any) -> tuple[sp.csr_array, sp.csr_array | None]:
        """Return what is known to be present and what is unknown, both CSR bool (N, L)."""
        present = as_csr(values).astype(bool)
        self._check_columns(present.shape)
        doubtful = as_unknown(unknown, present.shape)
        return present if doubtful is None else sp.csr_array(present > doubtful), doubtful

    def _check_columns(self, shape: Sequence[int]) -> None:
        if len(shape) != 2 or shape[1] != self.space.num_labels:
            raise ValueError(f"a matrix of shape (N, {self.space.num_labels}) was wanted; got {tuple(shape)}")

    def _raise_ancestors(self, scores: torch.Tensor) -> torch.Tensor:
        pairs = sp.coo_array(self._enforced)
        child, parent = (torch.from_numpy(axis.astype(np.int64)).to(scores.device) for axis in pairs.coords)
        rows_at_once = max(1, _VALUES // max(1, len(child)))
        blocks = [
            block.scatter_reduce(1, parent.expand(len(block), -1), block[:, child], "amax")
            for block in scores.split(rows_at_once)
        ]
        return torch.cat(blocks)


def resolve_aliases(aliases: Mapping[str, str]) -> dict[str, str]:
    """Return each alias with the name at the end of its chain.

    Args:
        aliases: Alias to the name it stands for, which may be an alias itself.

    Raises:
        ValueError: a cycle, which the message shows, or an alias that stands for two names.
        TypeError: a name that is no text, or something else than a mapping.

    Example:
        >>> resolve_aliases({"kitteh": "kitty", "kitty": "cat"})
        {'kitteh': 'cat', 'kitty': 'cat'}
    """
    if not isinstance(aliases, Mapping):
        raise TypeError(f"aliases must be a mapping of names to names; got {type(aliases).__name__}")
    steps: dict[str, str] = {}
    for alias, target in aliases.items():
        alias, target = _name(alias), _name(target)
        if steps.setdefault(alias, target) != target:
            raise ValueError(f"alias {alias!r} stands for both {steps[alias]!r} and {target!r}")
    ends: dict[str, str] = {}
    for alias in steps:
        chain = dict.fromkeys([alias])
        while (name := next(reversed(chain))) in steps and name not in ends:
            if steps[name] in chain:
                names = list(chain)
                raise ValueError(f"aliases form a cycle: {_shown_cycle(names[names.index(steps[name]) :])}")
            chain[steps[name]] = None
        end = ends.get(name, name)
        ends |= {link: end for link in chain if link in steps}
    return {alias: ends[alias] for alias in steps}


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise TypeError(f"a name must be a text that is not empty; got {name!r}")
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _resolve_pairs(implications: Iterable[Any], aliases: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the different pairs between what the names stand for, sorted."""
    pairs = set()
    for place, pair in enumerate(implications):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise TypeError(f"implication {place} must be a pair (child, parent); got {pair!r}")
        child, parent = _name(pair[0]), _name(pair[1])
        resolved = aliases.get(child, child), aliases.get(parent, parent)
        # Aliases of one name imply each other, which says nothing; a name that implies itself is somebody's mistake.
        if child == parent or resolved[0] != resolved[1]:
            pairs.add(resolved)
    return tuple(sorted(pairs))


def _parents_first(parents: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the names so that each comes after what it implies.

    Raises:
        ValueError: a cycle, which the message shows.
    """
    try:
        yield from TopologicalSorter(parents).static_order()
    except CycleError as error:
        raise ValueError(f"implications form a cycle: {_shown_cycle(error.args[1][:0:-1])}") from None


def _shown_cycle(names: Sequence[str]) -> str:
    """Return a cycle, each name given once, as `a -> b -> a`: from its first name on, and cut where it is long."""
    start = names.index(min(names))
    turned = [*names[start:], *names[:start]]
    shown = turned if len(turned) <= 12 else [*turned[:10], f"... ({len(turned) - 11} more)", turned[-1]]
    return " -> ".join([*shown, turned[0]])


def _closure(parents: Mapping[str, Sequence[str]], labels: Sequence[str]) -> sp.csr_array:
    """Return which labels each label implies, directly or by way of any names: CSR bool (L, L).

    Each name gets the columns at or above it, those of its parents being known by then. Names outside the labels have
    no column, so that chains of them cost nothing.
    """
    column_of = {label: column for column, label in enumerate(labels)}
    nothing = np.zeros(0, dtype=np.int32)
    rows = [nothing] * len(labels)
    reached: dict[str, np.ndarray] = {}
    for name in _parents_first(parents):
        above = [reached[parent] for parent in parents[name]]
        columns = above[0] if len(above) == 1 else np.unique(np.concatenate([nothing, *above]))
        if name in column_of:
            rows[column_of[name]] = columns
            columns = np.append(columns, np.int32(column_of[name]))
        reached[name] = columns
    return _bool_csr(rows, len(labels))


def _bool_csr(rows: Sequence[Any], num_columns: int) -> sp.csr_array:
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
    indices = np.concatenate([np.zeros(0, dtype=np.int32), *rows]).astype(np.int32)
    matrix = sp.csr_array((np.ones(len(indices), dtype=bool), indices, indptr), shape=(len(rows), num_columns))
    matrix.sort_indices()
    return matrix


def _refuse_exclusive_pairs(closure: sp.csr_array, space: LabelSpace) -> None:
    for group in space.exclusive_groups:
        span = space.slices[group.name]
        inside = sp.coo_array(closure[span, span])
        if inside.nnz:
            child, parent = (group.labels[axis[0]] for axis in inside.coords)
            raise ValueError(
                f"{child!r} implies {parent!r}, but both are labels of the exclusive group {group.name!r}, of which "
                "only one holds"
            )
