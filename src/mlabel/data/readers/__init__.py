"""Readers: each returns the `ImageTable` of a data set on disk, one file a format.

A reader of one's own is any function that returns an `ImageTable`.
"""

from __future__ import annotations

from collections.abc import Callable

from mlabel.data.readers.celeba import read_celeba
from mlabel.data.readers.csv_table import read_csv
from mlabel.data.readers.danbooru import read_danbooru
from mlabel.data.readers.fashion import read_fashion, write_submission
from mlabel.data.readers.mirflickr import read_mirflickr
from mlabel.data.table import ImageTable

READERS: dict[str, Callable[..., ImageTable]] = {
    "celeba": read_celeba,
    "csv": read_csv,
    "danbooru": read_danbooru,
    "fashion": read_fashion,
    "mirflickr": read_mirflickr,
}

__all__ = [
    "READERS",
    "read_celeba",
    "read_csv",
    "read_danbooru",
    "read_fashion",
    "read_mirflickr",
    "write_submission",
]
