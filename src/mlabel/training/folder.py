"""What a training writes into the run's folder beside its checkpoints, and the lock that keeps a second one out."""

from __future__ import annotations

import csv
import fcntl
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlabel._files import read_json, to_json, write_atomically
from mlabel.training.checkpoint import list_checkpoints


def refuse_used(run_dir: str | Path, resume: str | Path | None) -> None:
    """Refuse a run folder that holds a training which is not to be resumed.

    Args:
        run_dir: The run's folder.
        resume: As in `train`; None: nothing is resumed.

    Raises:
        FileExistsError: there are checkpoints, and `resume` is None.

    Example:
        >>> import tempfile
        >>> refuse_used(tempfile.mkdtemp(), None)  # an empty folder may be used
    """
    if resume is None and list_checkpoints(run_dir):
        raise FileExistsError(
            f"{run_dir} already holds a training; go on with it by resume='auto' (--resume auto), or choose another "
            "folder"
        )


def write_run_config(run_dir: str | Path, **sections: Mapping[str, Any]) -> None:
    """Write `sections` into the run's `config.json`, leaving its other sections as they are.

    Args:
        run_dir: The run's folder.
        **sections: Name of a section to what stands in it, for JSON.

    Raises:
        DataError: the `config.json` that is there is no JSON.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> write_run_config(folder, training={"epochs": 3})
        >>> write_run_config(folder, data={"reader": "csv"})
        >>> sorted(read_json(Path(folder) / "config.json"))
        ['data', 'format', 'training']
    """
    path = Path(run_dir) / "config.json"
    held = read_json(path) if path.exists() else {"format": "mlabel.run/1"}
    write_atomically(path, to_json({**held, **sections}))


def write_history(path: str | Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write the history as CSV, one line an evaluation; what was not measured is empty.

    Args:
        path: The file to write.
        history: One dictionary an evaluation, as `fit` returns them.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "history.csv"
        >>> write_history(path, [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "val_map": 0.75}])
        >>> print(path.read_text(), end="")
        epoch,loss,val_map
        1,0.5,
        2,0.25,0.75
    """
    names = list(dict.fromkeys(name for entry in history for name in entry))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(entry.get(name)) for name in names] for entry in history)
    write_atomically(path, text.getvalue())


def _cell(value: Any) -> str:
    return "" if value is None or value != value else repr(value)


@contextmanager
def lock_run(run_dir: Path | None) -> Iterator[None]:
    """Hold the run folder against a second training; the system lets go of it when the process ends, however."""
    if run_dir is None:
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"another training is running in {run_dir}; wait for it, or choose another folder"
            ) from None
        yield
