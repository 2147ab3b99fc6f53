"""Check a built documentation without a network: links lead somewhere, and every public name has its place.

    python tools/check_site.py docs/_build

Every `href` and `src` within the site must be a file of it, and what follows `#` an `id` in that file. Every public
name of mlabel's packages must stand in the site's inventory, which is what other projects link to.
"""

from __future__ import annotations

import re
import sys
import zlib
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import mlabel


@dataclass(frozen=True)
class Page:
    """What a page links to, and the places in it. Sphinx quotes what it shows, so an attribute is never text."""

    links: frozenset[str]
    places: frozenset[str]

    @classmethod
    def read(cls, path: Path) -> Page:
        """Return what is in a file."""
        text = path.read_text(encoding="utf-8")
        links = map(unescape, re.findall(r'\s(?:href|src)="([^"]*)"', text))
        return cls(frozenset(links), frozenset(map(unescape, re.findall(r'\s(?:id|name)="([^"]*)"', text))))


def broken_links(site: Path) -> list[str]:
    """Return a line for each link that leads nowhere within the site; addresses elsewhere are not asked for."""
    site = site.resolve()
    pages = {path: Page.read(path) for path in sorted(site.rglob("*.html"))}
    return [
        f"{path.relative_to(site)}: {fault} {link}"
        for path, page in pages.items()
        for link in sorted(page.links)
        if (fault := _fault(path, link, pages))
    ]


def _fault(path: Path, link: str, pages: dict[Path, Page]) -> str | None:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not goal.is_file():
        return "no file"
    lost = parts.fragment and goal in pages and unquote(parts.fragment) not in pages[goal].places
    return "no place" if lost else None


def documented_names(site: Path) -> set[str]:
    """Return the names of the site's inventory."""
    raw = (site / "objects.inv").read_bytes()
    lines = zlib.decompress(raw.split(b"\n", 4)[4]).decode().splitlines()
    return {line.split(" ")[0] for line in lines if " py:" in line}


def public_names() -> list[str]:
    """Return what `__all__` of each package has; of a package without one, what is defined there."""
    packages = [getattr(mlabel, name) for name in mlabel.__all__ if name == name.lower() and name[0] != "_"]
    names = []
    for package in (each for each in packages if isinstance(each, ModuleType)):
        own = [name for name, held in vars(package).items() if getattr(held, "__module__", None) == package.__name__]
        public = getattr(package, "__all__", [name for name in own if name[0] != "_"])
        names += [f"{package.__name__}.{name}" for name in public]
    return names


def missing_names(site: Path) -> list[str]:
    """Return a line for each public name that has no place in the site."""
    known = documented_names(site)
    return [f"{name} is on no page" for name in public_names() if name not in known]


def main() -> int:
    """Say what is broken or missing, and return 1 where something is."""
    site = Path(sys.argv[1])
    found = broken_links(site) + missing_names(site)
    print("\n".join(found) or f"all links and names of {site} are there")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
