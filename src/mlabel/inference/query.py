"""The language of `mlabel search`: which images are wanted, said by label names.

    big_eyes AND NOT eyeglasses
    (cat OR dog)^2 outdoors "long hair">0.7

Labels stand side by side or with AND between them; OR binds less tightly, and NOT most. A name with a space or one of
the signs `( ) " ^ < >`, or one that reads AND, OR or NOT, is put in double quotes (`\\"` and `\\\\` inside). `name>0.7`
(also `>=`, `<`, `<=`) leaves out every image whose score does not obey; `^2` counts a part as if it stood there twice.

The score of an image is the probability that the whole query holds, were the labels independent: the product over AND,
one less the product of the complements over OR, the complement for NOT. De Morgan's rules carry NOT down to the labels
when a query is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

MAX_LENGTH = 10_000  # of a query, in characters
MAX_DEPTH = 100  # of parentheses and NOT

_TOKENS = re.compile(
    r"""\s*(?: (?P<quoted>"(?:[^"\\]|\\.)*") | (?P<open>\() | (?P<close>\)) | (?P<compare>[<>]=?)
             | \^(?P<weight>[^\s()"^<>]*) | (?P<word>[^\s()"^<>]+) )""",
    re.VERBOSE,
)
_NEGATED = {">": "<=", ">=": "<", "<": ">=", "<=": ">"}


@dataclass(frozen=True)
class Term:
    """A label that is wanted, or not wanted.

    Attributes:
        name: The label's.
        wanted: False: the less of it the better.
        compare: `>`, `>=`, `<` or `<=`, which the score must be to `bound`; None: any score will do.
        bound: See there.
        weight: It counts as if it stood there so many times.
    """

    name: str
    wanted: bool = True
    compare: str | None = None
    bound: float = 0.0
    weight: float = 1.0


@dataclass(frozen=True)
class Both:
    """All of some parts: AND."""

    parts: tuple[Node, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Either:
    """At least one of some parts: OR."""

    parts: tuple[Node, ...]
    weight: float = 1.0


Node = Term | Both | Either


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    place: int  # from 1


def parse_query(text: str) -> Node:
    """Return what a query says; see the module for the language.

    Args:
        text: The query.

    Raises:
        ValueError: the text is not a query; what was wanted, and at which character.

    Example:
        >>> parse_query("cat NOT dog^2")  # doctest: +NORMALIZE_WHITESPACE
        Both(parts=(Term(name='cat', wanted=True, compare=None, bound=0.0, weight=1.0),
                    Term(name='dog', wanted=False, compare=None, bound=0.0, weight=2.0)), weight=1.0)
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"a query may have {MAX_LENGTH:,} characters; this one has {len(text):,}")
    return _Parser(text).parse()


def terms(node: Node) -> Iterator[Term]:
    """Yield the labels of a query, in the order in which they stand there."""
    if isinstance(node, Term):
        yield node
    else:
        for part in node.parts:
            yield from terms(part)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(_split(text))
        self.position = 0

    @property
    def token(self) -> _Token:
        return self.tokens[self.position]

    def parse(self) -> Node:
        node = self._either(wanted=True, depth=0)
        if self.token.kind != "end":
            self._fail("AND, OR or the end")
        return node

    def _either(self, *, wanted: bool, depth: int) -> Node:
        parts = [self._both(wanted=wanted, depth=depth)]
        while self._take("OR"):
            parts.append(self._both(wanted=wanted, depth=depth))
        return _join(parts, Either if wanted else Both)

    def _both(self, *, wanted: bool, depth: int) -> Node:
        parts = [self._part(wanted=wanted, depth=depth)]
        while self._take("AND") or self.token.kind in ("name", "NOT", "("):
            parts.append(self._part(wanted=wanted, depth=depth))
        return _join(parts, Both if wanted else Either)

    def _part(self, *, wanted: bool, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise ValueError(f"a query may be nested {MAX_DEPTH} deep; this one is deeper at character {self.place}")
        if self._take("NOT"):
            return self._part(wanted=not wanted, depth=depth + 1)
        if not self._take("("):
            return self._term(wanted)
        node = self._either(wanted=wanted, depth=depth + 1)
        if not self._take(")"):
            self._fail("AND, OR or ')'")
        return replace(node, weight=node.weight * self._weight())

    def _term(self, wanted: bool) -> Term:
        if self.token.kind != "name":
            self._fail("a label, NOT or '('")
        name = self._next().text
        compare, bound = None, 0.0
        if self.token.kind == "compare":
            compare = self._next().text
            bound = self._number("name", "a probability, such as 0.7,", most=1.0)
            compare = compare if wanted else _NEGATED[compare]
            wanted = compare in (">", ">=")
        return Term(name, wanted, compare, bound, self._weight())

    def _weight(self) -> float:
        if self.token.kind != "weight":
            return 1.0
        return self._number("weight", "a weight above 0, such as ^2,", most=1e6)

    def _number(self, kind: str, wanted: str, *, most: float) -> float:
        token = self.token
        if token.kind == kind and re.fullmatch(r"[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?", token.text):
            value = float(token.text)
            if value <= most and (value > 0 or kind == "name"):
                self.position += 1
                return value
        self._fail(wanted)

    @property
    def place(self) -> int:
        return self.token.place

    def _take(self, kind: str) -> bool:
        if self.token.kind != kind:
            return False
        self.position += 1
        return True

    def _next(self) -> _Token:
        self.position += 1
        return self.tokens[self.position - 1]

    def _fail(self, wanted: str) -> NoReturn:
        found = "the end" if self.token.kind == "end" else repr(self.token.text)
        raise ValueError(f"in the query {self.text!r}: {wanted} was wanted at character {self.place}; got {found}")


def _split(text: str) -> Iterator[_Token]:
    """Yield the tokens of a query, the last of them of the kind `end`."""
    place = 0
    end = len(text.rstrip())
    while place < end:
        match = _TOKENS.match(text, place)
        if match is None:  # of all characters only a quote can begin nothing
            start = len(text) - len(text[place:].lstrip()) + 1
            raise ValueError(f"in the query {text!r}: the quote at character {start} is not closed")
        kind, found = match.lastgroup or "", match[match.lastgroup or 0]
        yield _Token(*_kind(kind, found), match.start(kind) + 1)
        place = match.end()
    yield _Token("end", "", end + 1)


def _kind(group: str, found: str) -> tuple[str, str]:
    if group == "quoted":
        return "name", re.sub(r"\\(.)", r"\1", found[1:-1])
    if group == "word":
        return (found, found) if found in ("AND", "OR", "NOT") else ("name", found)
    return (found, found) if group in ("open", "close") else (group, found)


def _join(parts: list[Node], kind: type[Both] | type[Either]) -> Node:
    return parts[0] if len(parts) == 1 else kind(tuple(parts))
