"""Data: annotation files to a checked table, image files to batches."""

from mlabel.data.cache import ImageCache
from mlabel.data.cache_build import Decoded, build_cache, plan_cache
from mlabel.data.dataset import ImageDataset
from mlabel.data.diagnosis import BrokenImplication, Diagnosis, Finding, Pair
from mlabel.data.doctor import examine
from mlabel.data.images import FORMATS, ImageError, MissingImageError, read_image
from mlabel.data.loader import BadImage, Batch, Loader
from mlabel.data.mixing import MIXES, cutmix, mix_batch, mixup, smooth_targets
from mlabel.data.readers import (
    READERS,
    SelectedTags,
    read_celeba,
    read_coco,
    read_csv,
    read_danbooru,
    read_fashion,
    read_hf,
    read_mirflickr,
    read_selected_tags,
    read_shards,
    read_sidecar,
    read_taxonomy,
    write_submission,
)
from mlabel.data.relations import Relations, relate_labels
from mlabel.data.sampling import (
    REPEAT_THRESHOLD,
    SAMPLERS,
    RepeatSampler,
    Sampler,
    SequentialSampler,
    count_repeats,
    make_sampler,
    rank_share,
    repeat_factors,
)
from mlabel.data.shard_checks import verify_shards
from mlabel.data.shards import WrittenShards, plan_shards, write_shards
from mlabel.data.split import random_split, stratified_split
from mlabel.data.split_report import MissingLabel, SplitReport, report_split
from mlabel.data.survey import Survey, survey_images, unite_groups
from mlabel.data.table import SPLIT_METHODS, ImageTable
from mlabel.data.transforms import AUGMENTATIONS, Augmentation, apply_keyed, augmentation, sample_key

__all__ = [
    "AUGMENTATIONS",
    "FORMATS",
    "MIXES",
    "READERS",
    "REPEAT_THRESHOLD",
    "SAMPLERS",
    "SPLIT_METHODS",
    "Augmentation",
    "BadImage",
    "Batch",
    "BrokenImplication",
    "Decoded",
    "Diagnosis",
    "Finding",
    "ImageCache",
    "ImageDataset",
    "ImageError",
    "ImageTable",
    "Loader",
    "MissingImageError",
    "MissingLabel",
    "Pair",
    "Relations",
    "RepeatSampler",
    "Sampler",
    "SelectedTags",
    "SequentialSampler",
    "SplitReport",
    "Survey",
    "WrittenShards",
    "apply_keyed",
    "augmentation",
    "build_cache",
    "count_repeats",
    "cutmix",
    "examine",
    "make_sampler",
    "mix_batch",
    "mixup",
    "plan_cache",
    "plan_shards",
    "random_split",
    "rank_share",
    "read_celeba",
    "read_coco",
    "read_csv",
    "read_danbooru",
    "read_fashion",
    "read_hf",
    "read_image",
    "read_mirflickr",
    "read_selected_tags",
    "read_shards",
    "read_sidecar",
    "read_taxonomy",
    "relate_labels",
    "repeat_factors",
    "report_split",
    "sample_key",
    "smooth_targets",
    "stratified_split",
    "survey_images",
    "unite_groups",
    "verify_shards",
    "write_shards",
    "write_submission",
]
