"""Readers: each returns the `ImageTable` of a data set on disk, one file a format.

A reader of one's own is any function that returns an `ImageTable`.
"""

from __future__ import annotations

from collections.abc import Callable

from mlabel.data.readers.celeba import read_celeba
from mlabel.data.readers.coco import read_coco
from mlabel.data.readers.csv_table import read_csv
from mlabel.data.readers.danbooru import read_danbooru
from mlabel.data.readers.fashion import read_fashion, write_submission
from mlabel.data.readers.hf import read_hf
from mlabel.data.readers.mirflickr import read_mirflickr
from mlabel.data.readers.selected_tags import SelectedTags, read_selected_tags
from mlabel.data.readers.shards import read_shards
from mlabel.data.readers.sidecar import read_sidecar
from mlabel.data.readers.tag_relations import read_taxonomy
from mlabel.data.table import ImageTable

READERS: dict[str, Callable[..., ImageTable]] = {
    "celeba": read_celeba,
    "coco": read_coco,
    "csv": read_csv,
    "danbooru": read_danbooru,
    "fashion": read_fashion,
    "hf": read_hf,
    "mirflickr": read_mirflickr,
    "shards": read_shards,
    "sidecar": read_sidecar,
}

__all__ = [
    "READERS",
    "SelectedTags",
    "read_celeba",
    "read_coco",
    "read_csv",
    "read_danbooru",
    "read_fashion",
    "read_hf",
    "read_mirflickr",
    "read_selected_tags",
    "read_shards",
    "read_sidecar",
    "read_taxonomy",
    "write_submission",
]
