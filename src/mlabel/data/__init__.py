"""Data: annotation files to a checked table, image files to batches."""

from mlabel.data.doctor import Diagnosis, Finding, examine
from mlabel.data.images import FORMATS, ImageError, MissingImageError, read_image
from mlabel.data.loader import BadImage, Batch, ImageDataset, Loader
from mlabel.data.readers import (
    READERS,
    read_celeba,
    read_csv,
    read_danbooru,
    read_fashion,
    read_mirflickr,
    write_submission,
)
from mlabel.data.split import stratified_split
from mlabel.data.survey import Survey, survey_images
from mlabel.data.table import ImageTable
from mlabel.data.transforms import AUGMENTATIONS, Augmentation, apply_keyed, augmentation, sample_key

__all__ = [
    "AUGMENTATIONS",
    "FORMATS",
    "READERS",
    "Augmentation",
    "BadImage",
    "Batch",
    "Diagnosis",
    "Finding",
    "ImageDataset",
    "ImageError",
    "ImageTable",
    "Loader",
    "MissingImageError",
    "Survey",
    "apply_keyed",
    "augmentation",
    "examine",
    "read_celeba",
    "read_csv",
    "read_danbooru",
    "read_fashion",
    "read_image",
    "read_mirflickr",
    "sample_key",
    "stratified_split",
    "survey_images",
    "write_submission",
]
