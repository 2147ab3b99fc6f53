"""Data: annotation files to a checked table, image files to batches."""

from mlabel.data.images import FORMATS, ImageError, MissingImageError, read_image

__all__ = [
    "FORMATS",
    "ImageError",
    "MissingImageError",
    "read_image",
]
