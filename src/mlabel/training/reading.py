"""The batches of an epoch as training reads them: what is skipped among them is listed first, that of all ranks."""

from __future__ import annotations

from collections.abc import Iterator

from mlabel.data import BadImage, Batch, Loader
from mlabel.data.images import too_many_bad
from mlabel.data.loader import LEFT_ALONE
from mlabel.training.bad_images import BadLog
from mlabel.training.distributed import Ranks


def read_batches(
    loader: Loader, log: BadLog, ranks: Ranks, *, epoch: int, start: int, max_bad: float
) -> Iterator[Batch]:
    """Return the batches of an epoch, or this rank's shares of them, from number `start` on.

    What is skipped is in `log`, as "train", before a step is made without it. Ranks that skip come to every batch
    together: one of which too little is left on all of them together is left out on all of them.

    Raises:
        DataError: the images that cannot be read are too many.
    """
    listed = len(loader.bad)
    try:
        for batch in loader.epoch(epoch, start=start):
            new, listed = loader.bad[listed:], len(loader.bad)
            if ranks.size > 1 and loader.skips:
                rows = _agree(loader, log, ranks, len(batch), new, max_bad)
                if rows < loader.min_last:
                    loader.leave_out(batch.index.tolist())
                    continue
            else:
                log.add("train", new)
            yield batch
        if ranks.size > 1 and loader.skips:
            new, listed = loader.bad[listed:], len(loader.bad)
            _agree(loader, log, ranks, 0, new, max_bad)
    finally:
        log.add("train", loader.bad[listed:])


def _agree(loader: Loader, log: BadLog, ranks: Ranks, rows: int, new: list[BadImage], max_bad: float) -> int:
    """List what any rank has skipped, and return how many rows all of them have of a batch."""
    together = ranks.add({"rows": rows, "new": len(new)})
    if together["new"]:
        log.add("train", [BadImage(*each) for held in ranks.gather(new) for each in held])
        bad = [image for image in log.of("train") if image.reason != LEFT_ALONE]
        last = bad[-1].reason if bad else ""
        too_many = too_many_bad(len(bad), len(loader.table), max_bad=max_bad, last=last)
        if too_many is not None:
            raise too_many
    return int(together["rows"])
