"""CSV and TSV: an image column with one column of tags, one column a label, or columns of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlabel.data.readers._columns import Columns, table_of_cells
from mlabel.data.readers._lines import csv_table
from mlabel.data.readers._tags import Vocabulary
from mlabel.data.table import ImageTable


def read_csv(
    path: str | Path,
    *,
    image_column: str = "image",
    tags_column: str | None = None,
    separator: str = ",",
    label_columns: Sequence[str] | None = None,
    exclusive: Sequence[str] = (),
    partition_column: str | None = None,
    id_column: str | None = None,
    group_column: str | None = None,
    unknown: str | Sequence[str] = (),
    min_count: int = 1,
    vocabulary: Vocabulary | None = None,
    root: str | Path | None = None,
    delimiter: str | None = None,
) -> ImageTable:
    """Return the table of a CSV or TSV file with a header line, in UTF-8.

    Labels come from any of three kinds of columns. `tags_column` is one column of many tags, which become the any-of
    group "tags", the most frequent first. `label_columns` hold 0 or 1 each, and become the any-of group "labels".
    Each of `exclusive` holds a class by its name, and becomes an exclusive group with the column's name and the
    classes in alphabetical order; an empty cell is unknown. Where a label of one group is also in another, the labels
    of the exclusive group are written `column:label`.

    Args:
        path: The file.
        image_column: The column of image files, relative to `root`.
        tags_column: The column of tags. None: there is none.
        separator: What stands between two tags; spaces around a tag are dropped.
        label_columns: The columns of 0 and 1. None: all columns not named otherwise, where there is no `tags_column`.
        exclusive: The columns of classes.
        partition_column: The column of parts: train, val (or valid, validation, dev) or test.
        id_column: The column of ids. None: from the file names, as `ImageTable` does.
        group_column: The column of ids of what a split must keep together. None: there is none.
        unknown: The cell texts, such as "-1" or "", that mean "not known" in label columns and class columns.
        min_count: Tags on fewer images are left out; not used for tags that a vocabulary names.
        vocabulary: What the labels are, and in which order, whatever the file holds. A list of tags is that of the
            group "tags", and needs a `tags_column`. A `LabelSpace`, or the path of one (`labels.json`) or of a tagger's
            `selected_tags.csv`, is the space of the table: tags and label columns go to the labels of their names,
            class columns to the exclusive groups of theirs. What is outside is left out and counted in the notes; a
            label that no column tells of is unknown. None: as above.
        root: The folder the image names start from. None: the file's own.
        delimiter: What stands between two cells. None: a tab for `.tsv` files, else a comma.

    Raises:
        FileNotFoundError: there is no such file, or images are not there.
        ValueError: a column there is not.
        DataError: a cell or a row that does not fit (with file and line), an image or id given twice, or no label
            left.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("a.jpg", "b.jpg"):
        ...     (folder / name).touch()
        >>> _ = (folder / "list.csv").write_text("image,tags,rating\\na.jpg,cat dog,safe\\nb.jpg,dog,other\\n")
        >>> table = read_csv(folder / "list.csv", tags_column="tags", separator=" ", exclusive=["rating"])
        >>> table.space, table.space.decode(table.targets)
        (LabelSpace(tags: 2 any-of, rating: 2 exclusive), [['dog', 'cat', 'safe'], ['dog', 'other']])
    """
    path = Path(path)
    header, rows = csv_table(path, delimiter or ("\t" if path.suffix.lower() == ".tsv" else ","))
    columns = Columns(
        image=image_column,
        tags=tags_column,
        separator=separator,
        labels=label_columns,
        exclusive=exclusive,
        partition=partition_column,
        ids=id_column,
        groups=group_column,
        unknown=frozenset([unknown] if isinstance(unknown, str) else unknown),
        min_count=min_count,
        vocabulary=vocabulary,
    )
    placed = ((f"line {line}", cells) for line, cells in rows)
    return table_of_cells(path, header, placed, columns=columns, root=path.parent if root is None else root)
