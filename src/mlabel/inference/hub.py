"""Bundles on the Hugging Face Hub: a bundle's folder with a model card, pushed and fetched by `huggingface_hub`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlabel._checks import require
from mlabel._files import write_atomically
from mlabel.inference.bundle import BUNDLE_FILES, load_bundle
from mlabel.inference.tagger import Tagger
from mlabel.labels import threshold_values

_SHOWN_LABELS = 200
_REPOSITORY = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)?")


def push_to_hub(folder: str | Path, name: str, *, private: bool = True, **options: Any) -> str:
    """Upload a bundle with its `README.md`, the model card, and return its address.

    Args:
        folder: Of the bundle; it is loaded once, so that nothing broken is sent.
        name: Of the repository, such as `someone/portraits`; made where it is not there.
        private: Whether a repository that is made is.
        options: To `huggingface_hub.HfApi.upload_folder`, such as `commit_message`.

    Raises:
        FileNotFoundError, DataError: the folder is no bundle.
        ImportError: without the `hub` extra.
    """
    load_bundle(folder)
    hub = _hub()
    hub.create_repo(name, private=private, exist_ok=True)
    patterns = [*BUNDLE_FILES, "README.md"]
    return str(hub.upload_folder(repo_id=name, folder_path=str(folder), allow_patterns=patterns, **options))


def from_pretrained(name: str | Path, *, revision: str | None = None, **options: Any) -> Tagger:
    """Return the tagger of a bundle in a folder here, or in a repository of the Hub, from which only its files are got.

    Args:
        name: A folder, or such as `someone/portraits`.
        revision: Branch, tag or commit of the repository; a commit is what never changes.
        options: To `Tagger.load`.

    Raises:
        FileNotFoundError, DataError: there is no bundle.
        ImportError: a repository without the `hub` extra.
        ValueError: a revision of a folder here.

    Example:
        >>> import tempfile
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.models import create_model
        >>> from mlabel.inference import save_bundle
        >>> folder = tempfile.mkdtemp()
        >>> model = create_model("small_cnn", LabelSpace([Group("tags", ["cat", "dog"])]), image_size=32)
        >>> from_pretrained(save_bundle(folder + "/bundle", model)).space.names
        ('cat', 'dog')
    """
    if Path(name).is_dir():
        if revision is not None:
            raise ValueError(f"{name} is a folder here, which has no revisions; got revision {revision!r}")
        return Tagger.load(name, **options)
    if not _REPOSITORY.fullmatch(str(name)):
        raise FileNotFoundError(f"{name} is neither a folder here nor a name on the Hub, such as someone/portraits")
    folder = _hub().snapshot_download(str(name), revision=revision, allow_patterns=list(BUNDLE_FILES))
    return Tagger.load(folder, **options)


def _hub() -> Any:
    return require("huggingface_hub", "hub")


def write_model_card(
    folder: str | Path,
    tagger: Tagger,
    *,
    title: str,
    data: Sequence[str],
    metrics: Mapping[str, Mapping[str, str]],
    limits: Sequence[str],
) -> Path:
    """Write `README.md` into a bundle's folder: what the model says, from what data, how well, and its limits.

    Args:
        folder: Of the bundle.
        tagger: What it holds.
        title: The heading.
        data: Sentences on the images it learned from and was measured on.
        metrics: Title of a column to metric to its text, with the interval where there is one.
        limits: Sentences on what it must not be trusted with.

    Example:
        >>> import tempfile
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.models import create_model
        >>> folder = tempfile.mkdtemp()
        >>> model = create_model("small_cnn", LabelSpace([Group("tags", ["cat", "dog"])]), image_size=32)
        >>> about = {"data": ["1,000 photographs."], "metrics": {"test": {"macro_f1": "0.81"}}, "limits": ["Drawings."]}
        >>> path = write_model_card(folder, Tagger(model), title="Cats and dogs", **about)
        >>> "# Cats and dogs" in path.read_text()
        True
    """
    space = tagger.space
    lines = ["---", "library_name: mlabel", "pipeline_tag: image-classification", "tags:", "- multi-label", "---", ""]
    lines += [f"# {_plain(title)}", "", f"{space.num_labels:,} labels. {_network(tagger)}", ""]
    lines += ["## Data", "", *[f"- {_plain(each)}" for each in data], ""]
    lines += ["## Metrics", "", *_metric_table(metrics), ""]
    lines += ["## Labels and thresholds", "", *_label_table(tagger), ""]
    lines += ["## Limits", "", *[f"- {_plain(each)}" for each in limits], ""]
    lines += ["## Use", "", "```python", "import mlabel", "", "tagger = mlabel.Tagger.load(FOLDER)"]
    lines += ['print(tagger.predict(["photo.jpg"])[0].labels)', "```", ""]
    path = Path(folder) / "README.md"
    write_atomically(path, "\n".join(lines))
    return path


def _network(tagger: Tagger) -> str:
    height, width = tagger.model.image_size
    weights = sum(parameter.numel() for parameter in tagger.model.parameters())
    name = tagger.model.config["backbone"]
    return f"`{_plain(str(name))}` with {weights / 1e6:.1f} M parameters, for images of {height} x {width} pixels."


def _metric_table(metrics: Mapping[str, Mapping[str, str]]) -> list[str]:
    names = dict.fromkeys(name for column in metrics.values() for name in column)
    head = ["| metric | " + " | ".join(map(_plain, metrics)) + " |", "|---" * (1 + len(metrics)) + "|"]
    return head + [
        f"| {name} | " + " | ".join(column.get(name, "") for column in metrics.values()) + " |" for name in names
    ]


def _label_table(tagger: Tagger) -> list[str]:
    space = tagger.space
    levels = threshold_values(tagger.thresholds, space.num_labels, space)
    lines = ["| label | group | threshold |", "|---|---|---|"]
    for group in space.groups:
        for column, name in enumerate(group.labels, start=space.slices[group.name].start):
            level = "highest of its group" if group.exclusive else f"{levels[column]:.3f}"
            lines.append(f"| {_plain(name)} | {_plain(group.name)} | {level} |")
    shown = lines[: 2 + _SHOWN_LABELS]
    more = len(lines) - len(shown)
    return shown + ([f"| ... | | {more:,} more in selected_tags.csv |"] if more else [])


def _plain(text: str) -> str:
    """Return a text in which Markdown and HTML find nothing to obey."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]<>()#+!|~$" else sign for sign in " ".join(text.split()))
