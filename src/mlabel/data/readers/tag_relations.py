"""Danbooru's relations of tags: JSON Lines of aliases and implications beside the posts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from mlabel._checks import DataError
from mlabel.data.readers._lines import fail, find_data_set, parse_json, read_lines, shown
from mlabel.labels import LabelSpace
from mlabel.taxonomy import Taxonomy, resolve_aliases

ALIASES, IMPLICATIONS = "tag_aliases", "tag_implications"
_FIELDS = ("antecedent_name", "consequent_name", "status")


def read_taxonomy(root: str | Path, space: LabelSpace, *, exclusive_hints: Iterable[Iterable[str]] = ()) -> Taxonomy:
    """Return the relations of tags that lie in a Danbooru folder, for the labels of a space.

    The files are `metadata/tag_aliases*.json` and `metadata/tag_implications*.json`, JSON Lines with
    `antecedent_name` (the alias, the child), `consequent_name` (what it stands for, the parent) and `status`, of which
    only "active" counts. One of the two may be lacking.

    Args:
        root: That folder, or the one it lies in.
        space: The labels, such as `table.space`. Tags outside are kept, as implications may lead through them.
        exclusive_hints: Sets of names of which seldom more than one holds, which the files do not have.

    Raises:
        FileNotFoundError: neither file is there.
        DataError: a line that is no such relation (with file and line), two targets of an alias, or a cycle, which
            the message shows.

    Example:
        >>> import json, tempfile
        >>> from mlabel.labels import Group
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "metadata").mkdir()
        >>> relation = {"antecedent_name": "kitten", "consequent_name": "cat", "status": "active"}
        >>> _ = (root / "metadata" / "tag_implications.json").write_text(json.dumps(relation))
        >>> taxonomy = read_taxonomy(root, LabelSpace([Group("tags", ["cat", "kitten"])]))
        >>> taxonomy.ancestors("kitten")
        ('cat',)
    """
    wanted = f"metadata/{ALIASES}*.json or metadata/{IMPLICATIONS}*.json"
    root = find_data_set(
        root, lambda place: place if _files(place, ALIASES) or _files(place, IMPLICATIONS) else None, wanted
    )
    aliases, implications = read_aliases(root), read_relations(root, IMPLICATIONS)
    return make_taxonomy(root, space, aliases=aliases, implications=implications, exclusive_hints=exclusive_hints)


def make_taxonomy(
    root: Path,
    space: LabelSpace,
    *,
    aliases: Mapping[str, str],
    implications: Iterable[tuple[str, str]],
    exclusive_hints: Iterable[Iterable[str]] = (),
) -> Taxonomy:
    """Return the taxonomy of relations read from a Danbooru folder.

    Raises:
        DataError: relations that a taxonomy refuses, such as a cycle; with the folder.
    """
    try:
        return Taxonomy(space, aliases=aliases, implications=implications, exclusive_hints=exclusive_hints)
    except ValueError as error:
        raise DataError(f"{root / 'metadata'}: {error}") from error


def read_aliases(root: Path, *, required: bool = False) -> dict[str, str]:
    """Return each active alias of a Danbooru folder with the tag that it stands for in the end.

    Raises:
        FileNotFoundError: there are no files of aliases, where they are `required`.
        DataError: two targets of an alias, or a cycle.
    """
    pairs = read_relations(root, ALIASES, required=required)
    targets: dict[str, str] = {}
    try:
        for alias, target in pairs:
            if targets.setdefault(alias, target) != target:
                raise ValueError(f"alias {shown(alias)} stands for both {shown(targets[alias])} and {shown(target)}")
        return resolve_aliases(targets)
    except ValueError as error:
        raise DataError(f"{root / 'metadata'}: {ALIASES}: {error}") from error


def read_relations(root: Path, kind: str, *, required: bool = False) -> list[tuple[str, str]]:
    """Return the active pairs (antecedent, consequent) of `ALIASES` or `IMPLICATIONS`.

    Raises:
        FileNotFoundError: there are no such files, where they are `required`.
        DataError: a line that is no such relation, with file and line.
    """
    paths = _files(root, kind)
    if required and not paths:
        raise FileNotFoundError(f"{root / 'metadata'}: no {kind}*.json, which was asked for")
    return [pair for path in paths for pair in _active_pairs(path)]


def _files(root: Path, kind: str) -> list[Path]:
    return sorted((root / "metadata").glob(f"{kind}*.json"))


def _active_pairs(path: Path) -> list[tuple[str, str]]:
    """Return the pairs of one file."""
    pairs = []
    for line, text in read_lines(path):
        if not text or text.isspace():
            continue
        relation = parse_json(path, line, text)
        values = [relation.get(name) for name in _FIELDS] if isinstance(relation, dict) else []
        texts = [value for value in values if isinstance(value, str) and value]
        if len(texts) < len(_FIELDS):
            raise fail(path, line, f"an object with the texts {', '.join(_FIELDS)} was wanted; found {shown(text)}")
        antecedent, consequent, status = texts
        if status == "active":
            pairs.append((antecedent, consequent))
    return pairs
