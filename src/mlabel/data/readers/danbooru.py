"""Danbooru: posts as JSON Lines, tags of several categories, a rating, images in a thousand buckets.

The metadata is read once, line by line. Tags become numbers in one growing integer array as they are met, and only
that array is gone through again when it is known which tags are frequent enough: the texts of a post live no longer
than its line.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from mlabel._checks import DataError, resolve
from mlabel.data.readers import selected_tags
from mlabel.data.readers._buckets import NumberedImages, list_numbered_images
from mlabel.data.readers._lines import (
    IMAGE_SUFFIXES,
    decode_json,
    fail,
    find_data_set,
    parse_json,
    read_lines,
    shown,
)
from mlabel.data.readers._tags import Vocabulary, as_vocabulary, outside_note
from mlabel.data.readers.tag_relations import IMPLICATIONS, make_taxonomy, read_aliases, read_relations
from mlabel.data.table import ImageTable
from mlabel.labels import Group, LabelSpace

# The number that each category of tags has in the metadata, in the order of our groups.
CATEGORIES = {name: number for name, number in selected_tags.CATEGORIES.items() if name != "rating"}
RATINGS = ("g", "s", "q", "e")
# Ratings take the first codes, so that a row of codes holds tags and rating alike; tags follow.
_RATING_CODES = {rating: code for code, rating in enumerate(RATINGS)}
_TAGGER_RATINGS = {"general": "g", "sensitive": "s", "questionable": "q", "explicit": "e"}
_NO_CATEGORY = 255
_NO_TAG = -1  # what the empty text between two spaces stands for
_NO_COLUMN = -1  # a label that no post has
_CHUNK = 1 << 20


def read_danbooru(
    root: str | Path,
    *,
    min_count: int = 100,
    max_labels: int | None = None,
    sample_every: int = 1,
    categories: Sequence[str] | None = None,
    with_rating: bool = True,
    vocabulary: Vocabulary | None = None,
    aliases: bool | None = None,
    close_implications: bool = False,
    images: str | None = "512px",
) -> ImageTable:
    """Return the table of a Danbooru folder: an any-of group for each category of tags, an exclusive group "rating".

    The folder has `metadata/posts*.json` (JSON Lines with `tag_string`, as of 2021), or JSON Lines of the older layout
    with a list `tags`, and the images as `512px/<id modulo 1000>/<id>.jpg`. Posts that are banned or lack `id` or
    `md5` are skipped, posts without an image are left out, and the notes count both. Labels are ordered by category
    and then by frequency; ratings are named `rating:s` and so on. A post and its `parent_id` form one group, so that
    a split does not tear variants of one picture apart.

    Args:
        root: That folder, or the one it lies in.
        min_count: Tags on fewer of the posts that are kept are left out.
        max_labels: At most so many tags, the most frequent ones. None: no limit.
        sample_every: Keep the first of every so many usable posts.
        categories: The categories of tags to use, of general, artist, copyright, character, meta. None: all.
        with_rating: True gives the group "rating", where the posts have two different ratings or more.
        vocabulary: What the labels are, and in which order, whatever the posts hold: a `LabelSpace`, a list of tags, or
            the path of a space (`labels.json`) or of a tagger's `selected_tags.csv`. A tag goes to the label of its
            name; a rating to the label of an exclusive group that is named `rating:s` and so on, or as taggers do
            (general, sensitive, questionable, explicit). What is outside is left out and counted in the notes.
            `min_count`, `max_labels`, `categories` and `with_rating` are then not used. None: as above.
        aliases: Whether a tag that is an alias is read, and counted, as the tag it stands for: True by the files
            `metadata/tag_aliases*.json`, which must be there; False never; None where there are such files. A label of
            `vocabulary` that is an alias is then given by the tag it stands for, unless that is a label, too.
        close_implications: True adds to each post the labels that its labels imply by the files
            `metadata/tag_implications*.json`, once the labels are chosen. See `mlabel.taxonomy.Taxonomy`.
        images: The folder of the buckets: "512px", "original" or another one in `root`. None: images are not looked
            for, every usable post is kept, and the paths say where in "512px" its image would be.

    Raises:
        FileNotFoundError: there are no such folders or files.
        ValueError: an unknown category, or a number below 1.
        DataError: a line that is no such post or relation (with file and line), an id given twice (with both lines), no
            post with an image, no tag that is frequent enough, or a cycle of aliases or implications.

    Reference:
        Anonymous, Danbooru community, G. Branwen. Danbooru2021: A Large-Scale Crowdsourced and Tagged Anime
        Illustration Dataset (2022).

    Example:
        >>> import json, tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "512px" / "0007").mkdir(parents=True)
        >>> (root / "512px" / "0007" / "7.jpg").touch()
        >>> (root / "metadata").mkdir()
        >>> post = {"id": "7", "md5": "0" * 32, "rating": "s", "tag_string": "cat hat", "tag_string_general": "cat hat"}
        >>> _ = (root / "metadata" / "posts.json").write_text(json.dumps(post))
        >>> table = read_danbooru(root, min_count=1)
        >>> table.ids.tolist(), table.space.decode(table.targets)
        (['7'], [['cat', 'hat']])
    """
    for value, what in ((min_count, "min_count"), (max_labels, "max_labels"), (sample_every, "sample_every")):
        if value is not None and value < 1:
            raise ValueError(f"{what} must be 1 or more; got {value}")
    wanted = {resolve(name, CATEGORIES, "category") for name in (categories or CATEGORIES)}
    root = find_data_set(root, lambda place: place if any(_post_files(place)) else None, "metadata/posts*.json")
    folder = root / (images or "512px")
    renamed = {} if aliases is False else read_aliases(root, required=aliases is True)
    implications = read_relations(root, IMPLICATIONS, required=True) if close_implications else []
    found = None if images is None else list_numbered_images(folder)
    posts = _read_posts(root, renamed, found, sample_every)
    posts.refuse_repeated_ids()
    if vocabulary is not None:
        space = as_vocabulary(vocabulary)
        columns, notes = posts.columns_of(space)
    else:
        space, columns, notes = posts.labels(wanted, min_count, max_labels, with_rating)
    targets = posts.targets(columns)
    if close_implications:
        written = targets.nnz
        targets, _ = make_taxonomy(root, space, aliases=renamed, implications=implications).close_targets(targets)
        notes.append(f"{targets.nnz - written:,} labels of posts were added, as others imply them")
    return ImageTable(
        paths=posts.paths(folder),
        ids=np.frombuffer(posts.ids, dtype=np.int64).astype(np.dtypes.StringDType()),
        targets=targets,
        space=space,
        groups=_families(np.frombuffer(posts.ids, np.int64), np.frombuffer(posts.parents, np.int64)),
        notes=(*posts.notes(sample_every), *notes),
    )


class _TagCodes(dict[str, int]):
    """Tag to code. A tag not met before gets the next code when it is looked up, with its category.

    Args:
        tag_file: The file of tags, read only where the posts do not say a tag's category. None: there is none.
        aliases: Each alias and the tag that it stands for, whose code it gets.

    Attributes:
        post: The post whose tags are looked up.
        aliases: The aliases.
        categories: The category of each code.
    """

    def __init__(self, tag_file: Path | None, aliases: Mapping[str, str]) -> None:
        super().__init__({"": _NO_TAG})
        self.post: dict[str, Any] = {}
        self.aliases = aliases
        self.categories = bytearray([_NO_CATEGORY] * len(RATINGS))
        self._tag_file = tag_file
        self._listed: dict[str, int] | None = None

    def __missing__(self, tag: str) -> int:
        tag.encode()  # half a surrogate pair is no text, and would fail when it is written
        name = self.aliases.get(tag, tag)
        if name not in self:
            self.categories.append(self._category_of(name, tag))
            self[name] = len(self.categories) - 1
        code = self[tag] = self[name]
        return code

    def names(self) -> list[str]:
        """Return the name of each code; ratings have none."""
        tags = [tag for tag, code in self.items() if code != _NO_TAG and tag not in self.aliases]
        return [""] * len(RATINGS) + tags

    def num_aliases(self) -> int:
        """Return how many aliases were looked up."""
        return len(self) - 1 - (len(self.categories) - len(RATINGS))

    def _category_of(self, name: str, written: str) -> int:
        """Return the category of a tag: as its post says, the tag file, or the post of its alias; else general."""
        category = _category_in(self.post, name)
        if category is None:
            category = self._category_listed(name)
        if category is None:
            category = _category_in(self.post, written)
        return CATEGORIES["general"] if category is None else category

    def _category_listed(self, tag: str) -> int | None:
        """Return the category of a tag by the tag file, or None."""
        if self._listed is None:
            self._listed = {} if self._tag_file is None else _read_tag_file(self._tag_file)
        return self._listed.get(tag)


@dataclass
class _Posts:
    """The posts kept so far, as columns of integers, and the codes of all tags met."""

    index: _TagCodes
    ids: array = field(default_factory=lambda: array("q"))
    parents: array = field(default_factory=lambda: array("q"))
    suffixes: array = field(default_factory=lambda: array("b"))
    places: array = field(default_factory=lambda: array("q"))
    codes: array = field(default_factory=lambda: array("i"))
    ends: array = field(default_factory=lambda: array("q", [0]))
    files: list[Path] = field(default_factory=list)
    skipped: int = 0
    without_image: int = 0
    usable: int = 0

    def add(self, post: dict[str, Any], post_id: int, suffix: int, line: int) -> None:
        """Keep a post.

        Raises:
            ValueError: its tags, rating or parent are not of the form wanted.
        """
        codes = self._tag_codes(post)
        rating = post.get("rating")
        if rating:
            code = _RATING_CODES.get(rating) if isinstance(rating, str) else None
            if code is None:
                raise ValueError(f"the rating must be one of {', '.join(RATINGS)}; found {shown(rating)}")
            codes.append(code)
        self.codes.fromlist(codes)
        self.ends.append(len(self.codes))
        self.ids.append(post_id)
        self.parents.append(_integer(post.get("parent_id"), "parent_id") or 0)
        self.suffixes.append(suffix)
        self.places.append(len(self.files) << 40 | line)

    def _tag_codes(self, post: dict[str, Any]) -> list[int]:
        text = post.get("tag_string")
        tags = text.split(" ") if isinstance(text, str) else _old_tags(post)
        self.index.post = post
        codes = list(map(self.index.__getitem__, tags))
        different = set(codes)
        if len(different) < len(codes) or _NO_TAG in different:
            codes = [code for code in dict.fromkeys(codes) if code != _NO_TAG]
        return codes

    def place(self, row: int) -> str:
        """Return the file and line of a post."""
        return f"{self.files[(self.places[row] >> 40) - 1]}, line {self.places[row] & (1 << 40) - 1}"

    def refuse_repeated_ids(self) -> None:
        """Raise DataError, naming both lines, where two posts have one id."""
        ids = np.frombuffer(self.ids, dtype=np.int64)
        order = np.argsort(ids, kind="stable")
        same = np.flatnonzero(np.diff(ids[order]) == 0)
        if len(same):
            first, second = int(order[same[0]]), int(order[same[0] + 1])
            raise DataError(f"{self.place(second)}: post {self.ids[second]} was given before, in {self.place(first)}")

    def counts(self) -> np.ndarray:
        """Return how many posts have each code."""
        counts = np.zeros(len(self.index.categories), dtype=np.int64)
        codes = np.frombuffer(self.codes, dtype=np.int32)
        for start in range(0, len(codes), _CHUNK):
            counts += np.bincount(codes[start : start + _CHUNK], minlength=len(counts))
        return counts

    def ratings(self) -> list[str]:
        """Return the ratings that some post has."""
        counts = self.counts()
        return [rating for rating, code in _RATING_CODES.items() if counts[code]]

    def vocabulary(self, wanted: set[int], min_count: int, max_labels: int | None) -> dict[str, list[int]]:
        """Return for each category that has some the codes of its labels, the most frequent first."""
        counts, names = self.counts(), self.index.names()
        category = np.frombuffer(self.index.categories, dtype=np.uint8)
        candidates = np.isin(category, list(wanted))
        frequent = np.flatnonzero(candidates & (counts >= min_count)).tolist()
        frequent.sort(key=lambda code: (-counts[code], names[code]))
        frequent = frequent[:max_labels]
        if not frequent:
            most = int(counts[candidates].max(initial=0))
            raise DataError(
                f"no tag is on {min_count} posts or more (min_count) of the {len(self.ids)} that are kept; the most "
                f"frequent is on {most}"
            )
        _refuse_two_forms([names[code] for code in frequent])
        groups = {name: [code for code in frequent if category[code] == k] for name, k in CATEGORIES.items()}
        return {name: codes for name, codes in groups.items() if codes}

    def labels(
        self, wanted: set[int], min_count: int, max_labels: int | None, with_rating: bool
    ) -> tuple[LabelSpace, list[int], list[str]]:
        """Return the space that the posts themselves make, the code of each of its columns, and notes."""
        chosen = self.vocabulary(wanted, min_count, max_labels)
        columns = [code for codes in chosen.values() for code in codes]
        names = self.index.names()
        groups = [Group(category, [names[code] for code in codes]) for category, codes in chosen.items()]
        ratings = self.ratings() if with_rating else []
        if len(ratings) > 1:
            groups.append(Group("rating", [f"rating:{rating}" for rating in ratings], exclusive=True))
            columns += [_RATING_CODES[rating] for rating in ratings]
        return LabelSpace(groups), columns, self.label_notes(len(names), chosen, ratings, with_rating)

    def columns_of(self, space: LabelSpace) -> tuple[list[int], list[str]]:
        """Return the code of each column of a given space, -1 where no post has it, and notes.

        Raises:
            DataError: two tags are one label, or none is a label.
        """
        ratings, notes = self._rating_columns(space)
        tags = [tag for tag in self.index.names() if tag and tag in space]
        _refuse_two_forms(tags)
        # A tag may have the name that a rating has in the space ("general"); the label is the rating's.
        renamed = self._renamed(space)
        names = {normalize("NFC", tag): self.index[tag] for tag in tags} | renamed | ratings
        if not tags and not renamed:
            raise DataError(f"{self.files[0]}: none of the tags of these posts is in the vocabulary")
        columns = [names.get(name, _NO_COLUMN) for name in space.names]
        left = np.setdiff1d(np.arange(len(_RATING_CODES), len(self.index.categories)), columns)
        uses = int(self.counts()[left].sum())
        return columns, notes + ([outside_note(len(left), uses, "tags")] if len(left) else [])

    def _rating_columns(self, space: LabelSpace) -> tuple[dict[str, int], list[str]]:
        """Return the code of each label of `space` that is a rating, and a note where a rating cannot be told."""
        exclusive = {label for group in space.exclusive_groups for label in group.labels}
        codes = {f"rating:{rating}": code for rating, code in _RATING_CODES.items()}
        codes |= {name: _RATING_CODES[rating] for name, rating in _TAGGER_RATINGS.items()}
        codes = {name: code for name, code in codes.items() if name in exclusive}
        found = self.ratings()
        if "sensitive" not in codes or "s" not in found or "g" in found:
            return codes, []
        # Before there was the rating g, s was "safe", of which a part is now general and a part sensitive.
        codes["sensitive"] = _NO_COLUMN
        return codes, ["the rating s of these posts is 'safe' of old, not 'sensitive', and was taken as unknown"]

    def _renamed(self, space: LabelSpace) -> dict[str, int]:
        """Return the code of each label that is an alias of a tag which is no label: of the first one of each tag."""
        first: dict[int, str] = {}
        for label in space.names:
            tag = self.index.aliases.get(label)
            if tag is not None and tag not in space and tag in self.index:
                first.setdefault(self.index[tag], label)
        return {label: code for code, label in first.items()}

    def targets(self, columns: list[int]) -> sp.csr_array:
        """Return targets (N, L) of which column k is the code `columns[k]`, empty at -1; other codes are dropped."""
        codes_of = np.array(columns, dtype=np.int32)
        used = np.flatnonzero(codes_of != _NO_COLUMN)
        lookup = np.full(len(self.index.categories), -1, dtype=np.int32)
        lookup[codes_of[used]] = used
        codes = np.frombuffer(self.codes, dtype=np.int32)
        ends = np.frombuffer(self.ends, dtype=np.int64)
        total = int(self.counts()[codes_of[used]].sum())
        # SciPy would make both of the wider type, and the columns twice as large as they need be.
        width = np.int32 if total < 1 << 31 else np.int64
        indices, indptr = np.empty(total, dtype=width), np.zeros(len(ends), dtype=width)
        filled = 0
        rows_at_once = max(1, _CHUNK * len(ends) // max(1, len(codes)))
        for start in range(0, len(ends) - 1, rows_at_once):
            bounds = ends[start : start + rows_at_once + 1]
            mapped = lookup[codes[bounds[0] : bounds[-1]]]
            kept = mapped >= 0
            before = np.concatenate([[0], np.cumsum(kept)])
            indptr[start + 1 : start + len(bounds)] = filled + before[bounds[1:] - bounds[0]]
            indices[filled : filled + before[-1]] = mapped[kept]
            filled += int(before[-1])
        shape = (len(ends) - 1, len(columns))
        targets = sp.csr_array((np.ones(filled, dtype=np.uint8), indices, indptr), shape=shape)
        targets.sort_indices()
        return targets

    def paths(self, folder: Path) -> np.ndarray:
        """Return where the images lie, made in pieces so that few of them are Python strings at a time."""
        paths = np.empty(len(self.ids), dtype=np.dtypes.StringDType())
        for start in range(0, len(paths), 65_536):
            pairs = zip(self.ids[start : start + 65_536], self.suffixes[start : start + 65_536], strict=True)
            texts = [f"{folder}{os.sep}{k % 1000:04d}{os.sep}{k}{IMAGE_SUFFIXES[s]}" for k, s in pairs]
            paths[start : start + 65_536] = texts
        return paths

    def notes(self, sample_every: int) -> list[str]:
        """Return what is to be said about posts that are not in the table."""
        notes = []
        if self.skipped:
            notes.append(f"{self.skipped:,} posts that are banned or lack id or md5 were skipped")
        if self.without_image:
            notes.append(f"{self.without_image:,} posts without an image were left out")
        if sample_every > 1:
            notes.append(f"of {self.usable:,} usable posts one in {sample_every} was kept")
        if self.index.num_aliases():
            notes.append(f"{self.index.num_aliases():,} tags are aliases, and were read as the tags they stand for")
        return notes

    def label_notes(
        self, num_codes: int, vocabulary: dict[str, list[int]], ratings: list[str], with_rating: bool
    ) -> list[str]:
        """Return what is to be said about tags and ratings that are no labels."""
        notes = []
        used, found = sum(map(len, vocabulary.values())), num_codes - len(RATINGS)
        if used < found:
            notes.append(f"{found - used:,} of {found:,} tags are too rare or not asked for, and are no labels")
        if with_rating and len(ratings) < 2:
            rated = f"have the rating {ratings[0]!r} or none" if ratings else "have no rating"
            notes.append(f"all posts {rated}, so there is no group 'rating'")
        return notes


def _post_files(root: Path) -> Iterator[Path]:
    """Yield the files of posts: of the layout of 2021, else of the older one, whose names are numbers."""
    newer = sorted((root / "metadata").glob("posts*.json"))
    yield from newer or sorted((root / "metadata").glob("[0-9]*.json"))


def _read_posts(root: Path, aliases: Mapping[str, str], images: NumberedImages | None, sample_every: int) -> _Posts:
    """Return the posts that have an image (all usable ones where `images` is None), of all files."""
    tag_file = next(iter(sorted((root / "metadata").glob("tags[0-9]*.json"))), None)
    posts = _Posts(_TagCodes(tag_file, aliases))
    for path in _post_files(root):
        posts.files.append(path)
        for line, text in read_lines(path):
            if not text or text.isspace():
                continue
            try:
                _take(posts, decode_json(text), line, images, sample_every)
            except RecursionError:
                raise fail(path, line, "the JSON is nested too deeply") from None
            except ValueError as error:
                raise fail(path, line, str(error)) from None
    if not posts.ids:
        searched = "no post is usable: "
        if images is not None:
            searched = (
                f"no post has an image: {posts.without_image} posts have none among the {len(images)} images on disk, "
            )
        raise DataError(f"{root}: {searched}{posts.skipped} are banned or lack id or md5")
    return posts


def _take(posts: _Posts, post: Any, line: int, images: NumberedImages | None, sample_every: int) -> None:
    """Count one post, and keep it where it is usable and its turn."""
    if not isinstance(post, dict):
        raise ValueError(f"a post (a JSON object) was wanted; found {shown(post)}")
    post_id = _integer(post.get("id"), "id")
    if post_id is None or not post.get("md5") or post.get("is_banned") is True:
        posts.skipped += 1
        return
    suffix = 0 if images is None else images.suffix(post_id)
    if suffix < 0:
        posts.without_image += 1
        return
    posts.usable += 1
    if (posts.usable - 1) % sample_every == 0:
        posts.add(post, post_id, suffix, line)


def _integer(value: Any, what: str) -> int | None:
    """Return a number that may be given as text; None where it is not given."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**15:
        return value
    raise ValueError(f"{what} must be a number; found {shown(value)}")


def _old_tags(post: dict[str, Any]) -> list[str]:
    """Return the tags of a post of the older layout."""
    tags = post.get("tags")
    if not isinstance(tags, list):
        raise ValueError("neither a text 'tag_string' nor a list 'tags' in this post")
    for tag in tags:
        if not isinstance(tag, dict) or not isinstance(tag.get("name"), str) or not tag["name"]:
            raise ValueError(f"each of 'tags' must have a name; found {shown(tag)}")
    return [tag["name"] for tag in tags]


def _category_in(post: dict[str, Any], tag: str) -> int | None:
    """Return the category that a post itself gives for one of its tags, or None."""
    for name, number in CATEGORIES.items():
        text = post.get(f"tag_string_{name}")
        if isinstance(text, str) and f" {tag} " in f" {text} ":
            return number
    if isinstance(post.get("tag_string"), str):
        return None
    given = next((entry.get("category") for entry in post["tags"] if entry["name"] == tag), None)
    return None if given is None else _category(given)


def _category(value: Any) -> int:
    number = _integer(value, "category")
    if number is None or number not in CATEGORIES.values():
        raise ValueError(f"the category of a tag must be one of {CATEGORIES}; found {shown(value)}")
    return number


def _read_tag_file(path: Path) -> dict[str, int]:
    """Return the category of each tag in a file of tags."""
    listed = {}
    for line, text in read_lines(path):
        tag = parse_json(path, line, text) if text else None
        try:
            if tag is not None:
                listed[tag["name"]] = _category(tag["category"])
        except (ValueError, KeyError, TypeError) as error:
            raise fail(path, line, f"a tag with name and category was wanted: {error!r}") from None
    return listed


def _refuse_two_forms(names: list[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(normalize("NFC", name), name)
        if other != name:
            raise DataError(f"tags {other!a} and {name!a} are one name in Unicode form NFC")


def _families(ids: np.ndarray, parents: np.ndarray) -> np.ndarray | None:
    """Return for each post the smallest id among those it is linked to by parents; None where there are no parents."""
    children = np.flatnonzero(parents > 0)
    if not len(children):
        return None
    known = np.unique(np.concatenate([ids, parents[children]]))
    tail, head = np.searchsorted(known, ids[children]), np.searchsorted(known, parents[children])
    links = sp.csr_array((np.ones(len(children), dtype=bool), (tail, head)), shape=(len(known), len(known)))
    component = connected_components(links, directed=False)[1]
    smallest = np.full(component.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(smallest, component, known)
    return smallest[component[np.searchsorted(known, ids)]]
