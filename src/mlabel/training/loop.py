"""The training loop: `train` yields what happens; `fit`, in `fitting`, runs it to the end."""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlabel.data import BadImage, Batch, ImageTable, Loader, mix_batch, smooth_targets
from mlabel.losses import BatchLoss, as_loss, begin_epoch
from mlabel.metrics import evaluate
from mlabel.metrics.evaluation import EXTRA_METRICS
from mlabel.models import Classifier
from mlabel.training.bad_images import NAME as BAD_NAME
from mlabel.training.bad_images import BadLog
from mlabel.training.checkpoint import load_checkpoint, mark_best, save_checkpoint
from mlabel.training.checks import check_monitor, check_tables, explain_small_batch, fingerprints
from mlabel.training.compiling import CompiledNetwork, explain_compiler
from mlabel.training.config import TrainConfig
from mlabel.training.distributed import Ranks, find_checkpoint, join_ranks
from mlabel.training.ema import WeightAverage
from mlabel.training.folder import lock_run, refuse_used, write_history, write_run_config
from mlabel.training.freezing import Freezing
from mlabel.training.gradients import batch_norms_of_all_ranks
from mlabel.training.logs import RunLog
from mlabel.training.optimisers import make_optimizer
from mlabel.training.precision import resolve_precision, tensor_float32
from mlabel.training.reading import read_batches
from mlabel.training.resizing import check_sizes, resize_batch, training_size
from mlabel.training.schedules import learning_rate
from mlabel.training.scoring import TableScores, score_table
from mlabel.training.sharding import TrainedModel, gather_tensors
from mlabel.training.state import Event, TrainState
from mlabel.training.step import StepResult, train_step

_log = logging.getLogger(__name__)

# Metrics of which less is better; all others are better when they are higher.
LOWER_IS_BETTER = frozenset({"loss", "hamming_loss", "coverage_error", "ranking_loss"})
# What a history entry keeps of an evaluation, besides the monitored metric.
HISTORY_METRICS = ("macro_f1", "micro_f1", "map", "exact_match")
MAX_SKIPPED_IN_A_ROW = 10
_LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def train(
    model: Classifier,
    loss: nn.Module | Any,
    train_table: ImageTable,
    val_table: ImageTable | None = None,
    *,
    config: TrainConfig | None = None,
    run_dir: str | Path | None = None,
    resume: str | Path | None = None,
    allow_changed_data: bool = False,
    device: str | torch.device | None = None,
) -> Generator[Event, None, None]:
    """Train `model`, yielding an `Event` after each step, evaluation and checkpoint, and one at the end.

    Whoever iterates may stop at any event, log it, or steer through `event.state`. Order, augmentation and dropout
    follow from the seed, the epoch and the step, so that a resumed training is the unbroken one.

    Args:
        model: Changed in place; it ends with its last weights, and where they are averaged, the average is in
            `event.state.average`. With `config.shard` a copy trains; it gets the weights at evaluations and the end.
        loss: A loss of `mlabel.losses`, or any callable of (logits, targets).
        train_table: What is learned from.
        val_table: What `config.monitor` is measured on; None: nothing is measured, and no checkpoint is the best.
        config: The settings; None: the defaults.
        run_dir: Folder of checkpoints and history; None: nothing is written.
        resume: `"auto"`: go on from the newest sound checkpoint of `run_dir`, or begin; a checkpoint's folder: go on
            from there; None: begin, and refuse a `run_dir` that already holds checkpoints.
        allow_changed_data: Go on although a table is not the one the checkpoint was trained on.
        device: None: a GPU if there is one, else the CPU.

    Raises:
        ValueError: an empty table, other label spaces, or a checkpoint that does not fit.
        FileExistsError: `run_dir` holds a training and `resume` is None.
        RuntimeError: ten steps in a row had a loss or gradient that was not finite, or another training holds
            `run_dir`.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from mlabel.data import ImageTable
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.losses import Loss, binary_cross_entropy
        >>> from mlabel.models import create_model
        >>> path, space = tempfile.mkdtemp() + "/a.png", LabelSpace([Group("tags", ["cat"])])
        >>> Image.new("RGB", (32, 32)).save(path)
        >>> table = ImageTable(paths=[path, path], ids=["a", "b"], targets=[[1], [0]], space=space)
        >>> model = create_model("small_cnn", space, image_size=32)
        >>> for event in train(model, Loss(binary_cross_entropy), table, table, config=TrainConfig(epochs=2)):
        ...     print(event.kind, event.epoch, event.step)
        ...     if event.kind == "eval" and event.metrics["val_map"] >= 0:
        ...         break
        step 0 1
        eval 1 1
    """
    config = config or TrainConfig()
    check_tables(model, train_table, val_table)
    check_monitor(config.monitor, model)
    check_sizes(config, model)
    if resume is not None and run_dir is None:
        raise ValueError("resume needs run_dir, the folder of the run to go on with")
    ranks = join_ranks(device)
    model.to(ranks.device(device))
    model.to(memory_format=_LAYOUTS[config.memory_format])
    return _Training(model, as_loss(loss, model.space), train_table, val_table, config, ranks).run(
        None if run_dir is None else Path(run_dir), resume, allow_changed_data
    )


class _Training:
    """The parts of one training that do not change, and the loop over them."""

    def __init__(
        self,
        model: Classifier,
        loss: BatchLoss,
        train_table: ImageTable,
        val_table: ImageTable | None,
        config: TrainConfig,
        ranks: Ranks,
    ) -> None:
        device = next(model.parameters()).device
        self.loss = loss
        self.val_table = val_table
        self.config = config
        self.ranks = ranks
        self.data = fingerprints(train_table, val_table)
        self.loader = Loader(
            train_table,
            batch_size=config.batch_size,
            image_size=model.image_size,
            channels=model.in_channels,
            augment=config.augment,
            sampler=config.sampler,
            repeat_threshold=config.repeat_threshold,
            seed=config.seed,
            rank=ranks.rank,
            world_size=ranks.size,
            num_workers=config.num_workers,
            pin_memory=device.type == "cuda",
            # Batch norm has no statistics of a single sample.
            min_last=min(2, config.batch_size),
            on_bad=config.on_bad,
            max_bad=config.max_bad if ranks.size == 1 else 1.0,  # of all ranks together, reading looks at it
        )
        precision = resolve_precision(config.precision, device)
        self._check_ranks(precision)
        self.trained = TrainedModel(model, config, ranks)
        self.trained.check(precision)
        model = self.trained.model
        self.bad = BadLog()
        self.log = RunLog(None, config)
        self.clock = time.perf_counter()
        Freezing(model, config)  # refuses an unknown stage; `run` makes the one for the network of several ranks
        share = len(range(ranks.rank, config.batch_size, ranks.size))
        network = None if config.compile == "none" else CompiledNetwork(model, config.compile, share)
        self.state = TrainState(
            model=model,
            optimizer=make_optimizer(model, config),
            scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
            config=config,
            precision=precision,
            network=network,
            average=None if config.ema is None else WeightAverage(model, config.ema),
            steps_per_epoch=-(-len(self.loader) // config.accumulate),
        )

    def run(
        self, run_dir: Path | None, resume: str | Path | None, allow_changed_data: bool
    ) -> Generator[Event, None, None]:
        state, ranks = self.state, self.ranks
        with lock_run(run_dir if ranks.first else None), batch_norms_of_all_ranks(state.model, ranks):
            self.freezing = Freezing(state.model, self.config)
            self._begin(run_dir, resume, allow_changed_data)
            try:
                while state.epoch < self.config.epochs and not state.stopped:
                    yield from self._epoch(run_dir)
                self.trained.bring_back()
                yield Event.of("end", state, notes=self._notes())
            except GeneratorExit as left:
                if left.__context__ is None:  # nothing went wrong where the events went, which another rank would miss
                    self.trained.bring_back()
                raise
            finally:
                self.freezing.end()
                self.trained.gradients.close()
                self.loader.close()
                self.log.close()

    def _check_ranks(self, precision: str) -> None:
        described = {f"the {name} table": value for name, value in self.data.items()}
        settings = {"the settings": self.config.to_dict(), "the precision chosen": precision}
        self.ranks.check_same({**described, **settings})

    def _begin(self, run_dir: Path | None, resume: str | Path | None, allow_changed_data: bool) -> None:
        if run_dir is not None:
            self._open(run_dir, resume, allow_changed_data)
        self.trained.share(self.state.average)

    def _open(self, run_dir: Path, resume: str | Path | None, allow_changed_data: bool) -> None:
        """Go on from a checkpoint where there is one, and begin what is written into the run's folder."""
        ranks, state = self.ranks, self.state
        if ranks.first:
            refuse_used(run_dir, resume)
        checkpoint = find_checkpoint(run_dir, resume, ranks)
        if checkpoint is not None:
            chosen = state.precision
            load_checkpoint(checkpoint, state, data=self.data, allow_changed_data=allow_changed_data)
            # Of a table that has become smaller, the epoch under way may be over.
            state.batch = min(state.batch, len(self.loader))
            self.trained.check(state.precision)
            _log.info("going on from %s", checkpoint)
            if state.precision != chosen and ranks.first:
                _log.warning(
                    "the training began in %s, where this machine would compute in %s; it goes on in %s",
                    *(state.precision, chosen, state.precision),
                )
        if not ranks.first:
            return
        if checkpoint is None:
            (run_dir / BAD_NAME).unlink(missing_ok=True)  # of a training that ended before its first checkpoint
        mark_best(state, run_dir)
        self.bad = BadLog(run_dir / BAD_NAME)
        self.log = RunLog(run_dir, self.config, None if checkpoint is None else state)
        write_run_config(run_dir, train=self.config.to_dict(), model=state.model.config)
        state.model.space.save(run_dir / "labels.json")
        write_history(run_dir / "history.csv", state.history)

    def _epoch(self, run_dir: Path | None) -> Iterator[Event]:
        state, config = self.state, self.config
        state.model.train()
        begin_epoch(self.loss, state.epoch)
        self.clock = time.perf_counter()
        yield from self._due(run_dir)  # a training stopped right after a step has this still before it
        batches = read_batches(
            self.loader, self.bad, self.ranks, epoch=state.epoch, start=state.batch, max_bad=config.max_bad
        )
        while not state.stopped and (step_batches := list(itertools.islice(batches, config.accumulate))):
            yield self._step(step_batches)
            yield from self._due(run_dir)
        if state.stopped:
            return
        state.epoch, state.batch = state.epoch + 1, 0
        yield from self._evaluate(run_dir, end_of_epoch=True)

    def _notes(self) -> tuple[str, ...]:
        """Return in sentences what was skipped or passed over."""
        sizes = {"train": len(self.loader.table)} | ({} if self.val_table is None else {"val": len(self.val_table)})
        skipped = {name: self.bad.count(name) for name in sizes}
        said = [f"{number:,} of {sizes[name]:,} {name} images skipped" for name, number in skipped.items() if number]
        if said and self.bad.path is not None:
            said[-1] += f"; see {self.bad.path}"
        notes: Counter[str] = Counter()
        for held in self.ranks.gather(self.loader.notes):
            notes.update(held)
        oddities = [f"passed over in training: {note} ({n:,} times)" for note, n in sorted(notes.items())]
        return (*said, *oddities)

    def _due(self, run_dir: Path | None) -> Iterator[Event]:
        """Evaluate or save within an epoch, where the step just done calls for it and it has not happened yet."""
        state, config = self.state, self.config
        if state.batch in (0, len(self.loader)):
            return  # the end of the epoch evaluates and saves anyway
        evaluated = bool(state.history) and state.history[-1]["step"] == state.step
        if config.eval_every and state.step % config.eval_every == 0 and not evaluated:
            yield from self._evaluate(run_dir)
        elif run_dir is not None and config.save_every and state.step % config.save_every == 0:
            yield self._save(run_dir)

    def _step(self, batches: Sequence[Batch]) -> Event:
        state = self.state
        rate = learning_rate(self.config, state.updates, state.steps_per_epoch)
        prepared = [self._prepare(batch) for batch in batches]
        self.freezing.apply(state.epoch)
        with (
            explain_small_batch(),
            explain_compiler(self.config.compile),
            self.trained.explained(),
            tensor_float32(self.config.tf32),
        ):
            result = train_step(
                state,
                self.loss,
                prepared,
                precision=state.precision,
                learning_rate=rate,
                gradients=self.trained.gradients,
            )
        state.batch = batches[-1].number + 1
        return self._note(result, batches)

    def _note(self, result: StepResult, batches: Sequence[Batch]) -> Event:
        """Return the event of a step, after it was written down, with what is odd about it."""
        state, ranks, now = self.state, self.ranks, time.perf_counter()
        images = sum(len(batch) for batch in batches) * ranks.size  # the shares differ by one at most
        event = Event.of("step", state, loss=result.loss, images=images, seconds=now - self.clock)
        self.clock = now
        spike = result.finite and state.is_spike(result.loss)
        self.log.step(event, finite=result.finite, spike=spike)
        if spike and ranks.first:
            _log.warning("step %d: the loss, %.4g, stands out from those of the last steps", state.step, result.loss)
        if not result.finite:
            shares = ranks.gather([row for batch in batches for row in batch.index.tolist()])
            self._note_bad(result, [str(self.loader.table.ids[row]) for share in shares for row in share])
        return event

    def _note_bad(self, result: StepResult, ids: Sequence[str]) -> None:
        state = self.state
        if self.ranks.first:
            _log.warning("step %d: loss or gradient not finite; the step changed nothing", state.step)
        self.log.anomaly(state, result, ids)
        if state.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise RuntimeError(
                f"{state.skipped_in_a_row} steps in a row had a loss or gradient that was not finite; the last, step "
                f"{state.step}, had the samples {ids}; lower the learning rate, or look at these images"
            )

    def _prepare(self, batch: Batch) -> Batch:
        """Return a batch as it is trained on: on the device, mixed, of this epoch's size and with smoothed targets."""
        state, config = self.state, self.config
        batch, space = batch.to(state.device), state.model.space
        if not len(batch):
            return batch
        batch = mix_batch(
            batch,
            space,
            mix=config.mix,
            alpha=config.mix_alpha,
            seed=config.seed,
            epoch=state.epoch,
            rank=self.ranks.rank,
        )
        batch = resize_batch(batch, training_size(config, state.epoch, state.model.image_size))
        if not config.label_smoothing:
            return batch
        return replace(batch, targets=smooth_targets(batch.targets, space, config.label_smoothing))

    def _evaluate(self, run_dir: Path | None, *, end_of_epoch: bool = False) -> Iterator[Event]:
        state, config = self.state, self.config
        entry: dict[str, Any] = {
            "epoch": state.epoch,
            "step": state.step,
            "lr": state.learning_rate,
            "train_loss": state.train_loss,
            "skipped": state.skipped,
        }
        improved = False
        if self.val_table is not None:
            entry.update(self._validate(self.val_table))
            improved = state.judge(
                entry[f"val_{config.monitor}"], higher_is_better=config.monitor not in LOWER_IS_BETTER
            )
        state.running = {}
        state.history.append(entry)
        self.log.evaluation(entry)
        self.clock = time.perf_counter()
        yield Event.of("eval", state, loss=entry["train_loss"], metrics=entry)
        if run_dir is not None:
            if self.ranks.first:
                write_history(run_dir / "history.csv", state.history)
            if end_of_epoch or improved or state.stopped or (config.save_every and state.step % config.save_every == 0):
                yield self._save(run_dir)

    def _validate(self, table: ImageTable) -> dict[str, float]:
        config, average = self.config, self.state.average
        bad: list[BadImage] = []
        try:
            held = nullcontext() if average is None else average.in_place_of(self.state.model)
            with held, self.trained.as_whole() as model, tensor_float32(config.tf32):
                scores = score_table(
                    model,
                    table,
                    self.loss,
                    batch_size=config.batch_size,
                    num_workers=config.num_workers,
                    precision=self.state.precision,
                    on_bad=config.on_bad,
                    max_bad=config.max_bad,
                    bad=bad,
                    ranks=self.ranks,
                )
        finally:
            self.bad.add("val", bad)
        measured = self._measure(scores, table) if self.ranks.first else {}
        return self.ranks.from_first({"val_loss": scores.loss, **measured})

    def _measure(self, scores: TableScores, table: ImageTable) -> dict[str, float]:
        model, config = self.state.model, self.config
        include = [config.monitor] if config.monitor in EXTRA_METRICS else []
        probabilities, table = scores.of_scored(table)
        result = evaluate(probabilities, table.targets, mask=table.unknown, space=model.space, include=include)
        kept = dict.fromkeys((*HISTORY_METRICS, config.monitor))
        return {f"val_{name}": float(result[name]) for name in kept if name != "loss"}

    def _save(self, run_dir: Path) -> Event:
        tensors = gather_tensors(self.state, self.ranks)
        if tensors is not None:
            save_checkpoint(self.state, run_dir, data=self.data, tensors=tensors)
        self.clock = time.perf_counter()
        return Event.of("checkpoint", self.state)
