"""The `Tagger`: images in, label names with their scores out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn

from mlabel._files import to_json
from mlabel.data import Batch, ImageTable, Loader
from mlabel.decisions import Calibration, Thresholds
from mlabel.inference.bundle import load_bundle, save_bundle
from mlabel.labels import LabelSpace, decide, threshold_values
from mlabel.models import Classifier, Head
from mlabel.taxonomy import Taxonomy
from mlabel.training import resolve_precision
from mlabel.training.bad_images import bare_reason
from mlabel.training.scoring import eval_mode
from mlabel.training.step import forward


@dataclass(frozen=True)
class Prediction:
    """What a tagger says of one image.

    Attributes:
        path: The image, as it was given.
        labels: The names that hold, each with its score, the highest score first.
        scores: Probabilities of all labels (L,) float32, calibrated where the tagger has a calibration.
        decisions: Which labels hold (L,) bool.
    """

    path: str
    labels: dict[str, float]
    scores: np.ndarray = field(repr=False)
    decisions: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Scored:
    """What a tagger says of a batch of images.

    Attributes:
        paths: The images (n), as they were given.
        scores: Their probabilities (n, L) float32.
        features: What the backbone made of them (n, D) float32; None where it was not asked for.
    """

    paths: list[str]
    scores: np.ndarray
    features: np.ndarray | None = None


class Tagger:
    """A trained model with its thresholds, ready to label images.

    Args:
        model: The model.
        thresholds: A `Thresholds`, a number, or an array (L,).
        counts: Positives of each label in the training part (L,), kept for `save`; None: not known.
        taxonomy: What labels imply others. A score is then at least those of the labels that imply it, and what a
            decided label implies is decided as well; None: each label stands alone.
        calibration: What makes logits probabilities, for which the thresholds then are; None: the space's own.

    Raises:
        ValueError: a taxonomy or calibration of other labels.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.models import create_model
        >>> folder = tempfile.mkdtemp()
        >>> Image.new("RGB", (32, 32)).save(folder + "/a.png")
        >>> model = create_model("small_cnn", LabelSpace([Group("tags", ["cat", "dog"])]), image_size=32)
        >>> tagger = Tagger(model)
        >>> found = tagger.predict([folder + "/a.png"], threshold=0.0)[0]  # each label holds
        >>> sorted(found.labels), found.scores.shape
        (['cat', 'dog'], (2,))
        >>> Tagger.load(tagger.save(folder + "/bundle")).space.names
        ('cat', 'dog')
    """

    def __init__(
        self,
        model: Classifier,
        thresholds: Thresholds | float | np.ndarray = 0.5,
        *,
        counts: np.ndarray | None = None,
        taxonomy: Taxonomy | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        if taxonomy is not None:
            model.space.check_same(taxonomy.space, "the taxonomy")
        if calibration is not None and calibration.num_labels != model.space.num_labels:
            raise ValueError(f"calibration must be of {model.space.num_labels} labels; got {calibration.num_labels}")
        self.model = model.eval()
        self.thresholds = thresholds
        self.counts = counts
        self.taxonomy = taxonomy
        self.calibration = calibration

    @property
    def space(self) -> LabelSpace:
        """The label space: what each column of scores means."""
        return self.model.space

    @property
    def levels(self) -> np.ndarray:
        """The thresholds (L,) on the model's own probabilities, before calibration; NaN at exclusive columns.

        Raises:
            ValueError: decisions are made by a rule that compares the labels of an image, without thresholds.
        """
        levels = threshold_values(self.thresholds, self.space.num_labels, self.space)
        return levels if self.calibration is None else self.calibration.raw_thresholds(levels)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        backbone: nn.Module | None = None,
        head: Head | None = None,
        device: str | torch.device | None = None,
        taxonomy: Taxonomy | None = None,
    ) -> Tagger:
        """Return the tagger of a bundle; see `load_bundle` for errors.

        Args:
            folder: The bundle's.
            backbone: The module that the model was built on, where that was one of yours.
            head: The model's head, likewise.
            device: None: a GPU if there is one, else the CPU.
            taxonomy: Of the bundle's labels; see the class.
        """
        bundle = load_bundle(folder, backbone=backbone, head=head)
        bundle.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        thresholds = 0.5 if bundle.thresholds is None else bundle.thresholds
        maps = bundle.calibration
        return cls(bundle.model, thresholds, counts=bundle.counts, taxonomy=taxonomy, calibration=maps)

    def save(self, folder: str | Path) -> Path:
        """Write the tagger as a bundle to `folder`, and return the folder.

        Raises:
            TypeError: thresholds that are bare numbers; a bundle holds a `Thresholds`, or none for 0.5.
        """
        if not isinstance(self.thresholds, Thresholds) and not np.all(np.asarray(self.thresholds) == 0.5):
            raise TypeError("only a Thresholds (or 0.5) can be saved; make one by mlabel.fit_thresholds")
        held = self.thresholds if isinstance(self.thresholds, Thresholds) else None
        return save_bundle(folder, self.model, held, calibration=self.calibration, counts=self.counts)

    def predict(
        self,
        images: str | Path | Sequence[str | Path],
        *,
        threshold: float | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> list[Prediction]:
        """Return a `Prediction` for each image, in the order given; see `stream`.

        Args:
            images: One path, or several.
            threshold: In place of the tagger's own, in [0, 1]; None: those.
            batch_size: Images of one forward pass.
            num_workers: Processes that decode images; 0: this one does.

        Raises:
            FileNotFoundError, DataError: an image is not there, or cannot be read.
        """
        paths = [images] if isinstance(images, str | Path) else list(images)
        return list(self.stream(paths, threshold=threshold, batch_size=batch_size, num_workers=num_workers))

    def predict_pixels(
        self, images: torch.Tensor, *, threshold: float | None = None, precision: str = "auto"
    ) -> list[Prediction]:
        """Return a `Prediction` for each of some images in memory, whose `path` is their number.

        Args:
            images: uint8 (N, C, H, W), of the model's channels and size, as `mlabel.data.read_image` gives them with
                `size=tagger.model.image_size`, with the channels put first.
            threshold: In the place of the tagger's thresholds, for any-of labels.
            precision: fp32, bf16, fp16 or auto.

        Raises:
            ValueError: images of another shape or type.
        """
        wanted = (self.model.in_channels, *self.model.image_size)
        if images.ndim != 4 or images.shape[1:] != wanted or images.dtype != torch.uint8:
            raise ValueError(
                f"images must be uint8 (N, {', '.join(map(str, wanted))}); got {tuple(images.shape)} of {images.dtype}"
            )
        device = next(self.model.parameters()).device
        nothing = torch.zeros((len(images), self.space.num_labels), dtype=torch.uint8)
        batch = Batch(images, nothing, None, torch.arange(len(images))).to(device)
        scores = self._score(batch, resolve_precision(precision, device))
        names = [str(number) for number in range(len(images))]
        return list(self._predictions(Scored(names, scores), self.thresholds if threshold is None else threshold))

    def stream(
        self,
        images: Sequence[str | Path] | ImageTable,
        *,
        threshold: float | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        precision: str = "auto",
        on_bad: str = "error",
        max_bad: float = 0.001,
        bad: list[tuple[str, str]] | None = None,
    ) -> Iterator[Prediction]:
        """Yield a `Prediction` for each image, in the order given, holding one batch at a time.

        Args:
            images: Paths, or a table; see `score`.
            threshold: In the place of the tagger's thresholds, for any-of labels.
            batch_size: Images of one forward pass.
            num_workers: Processes that decode images.
            precision: fp32, bf16, fp16 or auto.
            on_bad: `error`: an unreadable image is a DataError; `skip`: it is left out.
            max_bad: With `skip`, the share of bad images above which it is an error all the same.
            bad: With `skip`, a list that gets (name, reason) of each image left out, before the next one is given.

        Raises:
            FileNotFoundError, DataError: an image is not there, or cannot be read.
        """
        thresholds = self.thresholds if threshold is None else threshold
        for scored in self.score(
            images,
            batch_size=batch_size,
            num_workers=num_workers,
            precision=precision,
            on_bad=on_bad,
            max_bad=max_bad,
            bad=bad,
        ):
            yield from self._predictions(scored, thresholds)

    def score(
        self,
        images: Sequence[str | Path] | ImageTable,
        *,
        with_features: bool = False,
        batch_size: int = 32,
        num_workers: int = 0,
        precision: str = "auto",
        on_bad: str = "error",
        max_bad: float = 0.001,
        bad: list[tuple[str, str]] | None = None,
    ) -> Iterator[Scored]:
        """Yield the probabilities of each batch of images, in the order given, without decisions.

        Args:
            images: Paths; or a table, whose labels are not looked at and whose ids are then the names: so that images
                come from a cache or from shards.
            with_features: Give the features (D) of each image as well; where the head wants a map, its mean.
            batch_size, num_workers, precision, on_bad, max_bad, bad: See `stream`.

        Raises:
            FileNotFoundError, DataError: an image is not there, or cannot be read.
        """
        if not len(images):
            return
        if isinstance(images, ImageTable):
            table, names = images, images.ids
        else:
            paths = [str(path) for path in images]
            # Numbered, since a path may be given twice.
            numbers = [str(number) for number in range(len(paths))]
            table, names = unlabelled(paths, self.space, ids=numbers), np.array(paths)
        device = next(self.model.parameters()).device
        precision = resolve_precision(precision, device)
        loader = Loader(
            table,
            batch_size=batch_size,
            image_size=self.model.image_size,
            channels=self.model.in_channels,
            num_workers=num_workers,
            pin_memory=device.type == "cuda",
            on_bad=on_bad,
            max_bad=max_bad,
        )
        name_of = attrgetter("id" if isinstance(images, ImageTable) else "path")
        skipped = [] if bad is None else bad
        before = len(skipped)

        def note_skipped() -> None:
            new = loader.bad[len(skipped) - before :]
            skipped.extend((name_of(image), bare_reason(image)) for image in new)

        try:
            for batch in loader.epoch():
                note_skipped()
                kept: list[torch.Tensor] = []
                network = partial(_keep_features, self.model, kept) if with_features else None
                scores = self._score(batch.to(device), precision, network=network)
                features = kept[0].float().cpu().numpy() if kept else None
                yield Scored(names[batch.index.numpy()].tolist(), scores, features)
        finally:
            note_skipped()
            loader.close()

    def _score(
        self, batch: Batch, precision: str, *, network: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> np.ndarray:
        """Return the probabilities (n, L) float32 of a batch that is on the model's device."""
        with eval_mode(self.model):
            scores = self._probabilities(forward(self.model, batch, precision, network=network))
            if self.taxonomy is not None:
                scores = self.taxonomy.consistent_scores(scores)
        return scores.cpu().numpy()

    def _probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the probabilities (n, L) float32, calibrated where there is a calibration."""
        if self.calibration is None:
            return self.space.probabilities(logits)
        return torch.from_numpy(self.calibration.apply(logits.float()))

    def features(
        self, images: str | Path | Sequence[str | Path], *, batch_size: int = 32, num_workers: int = 0
    ) -> np.ndarray:
        """Return what the backbone makes of each image, float32 (N, D), in the order given; see `score`.

        Args:
            images: One path, or several.
            batch_size: Images of one forward pass.
            num_workers: Processes that decode images; 0: this one does.

        Raises:
            FileNotFoundError, DataError: an image is not there, or cannot be read.
        """
        paths = [images] if isinstance(images, str | Path) else list(images)
        batches = self.score(paths, with_features=True, batch_size=batch_size, num_workers=num_workers)
        empty = np.zeros((0, self.model.num_features), dtype=np.float32)
        return np.concatenate([each.features for each in batches if each.features is not None] or [empty])

    def fingerprint(self) -> str:
        """Return a text that differs where predictions may.

        It is of weights, architecture, labels, thresholds, taxonomy and calibration.
        """
        found = hashlib.sha256(to_json(self.model.config).encode() + self.space.fingerprint.encode())
        for name, tensor in self.model.state_dict().items():
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        levels = self.thresholds.values if isinstance(self.thresholds, Thresholds) else self.thresholds
        found.update(np.asarray(levels, dtype=np.float64).tobytes())
        found.update(b"" if self.taxonomy is None else self.taxonomy.fingerprint.encode())
        found.update(b"" if self.calibration is None else to_json(self.calibration.to_dict()).encode())
        return found.hexdigest()

    def _predictions(self, scored: Scored, thresholds: Any) -> Iterator[Prediction]:
        decisions = decide(scored.scores, thresholds, self.space)
        if self.taxonomy is not None:
            decisions = self.taxonomy.close_targets(decisions)[0].toarray().astype(bool)
        for path, row, held in zip(scored.paths, scored.scores, decisions, strict=True):
            columns = np.flatnonzero(held)
            columns = columns[np.argsort(-row[columns], kind="stable")]
            yield Prediction(path, {self.space.names[c]: float(row[c]) for c in columns}, row, held)


def _keep_features(model: Classifier, kept: list[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Return the logits, and append the features (N, D) that they come from: of a map, the mean over its places."""
    if not model.head.takes_map:
        kept.append(features := model.features(images))
        return model.head(features)
    places = model.feature_map(images)
    kept.append(places.mean(dim=(2, 3) if places.ndim == 4 else 1))
    return model.head(places)


def unlabelled(paths: Sequence[str], space: LabelSpace, ids: Sequence[str]) -> ImageTable:
    """Return a table of images about which nothing is known."""
    targets = sp.csr_array((len(paths), space.num_labels), dtype=np.uint8)
    return ImageTable(paths=paths, targets=targets, space=space, ids=ids)
