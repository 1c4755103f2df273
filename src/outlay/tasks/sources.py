"""Sources of a task's rows, as its file gives them: files, hub sets, other tasks, and how rows become examples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from outlay.errors import DataError
from outlay.settings import LARGEST_SEED, LEAST_SEED
from outlay.tasks.example import TextFormat
from outlay.tasks.yaml_file import NonEmpty, Value, YamlBlock
from outlay.text.yaml_text import written_text

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Split = Literal["train", "dev", "test"]


def compiled(template: str) -> TextFormat:
    """Compile a template of the task file; what is wrong with it becomes pydantic's ValueError."""
    try:
        return TextFormat(template)
    except DataError as error:
        raise ValueError(str(error)) from None


class Origin(YamlBlock):
    """Public origin of a file: its address and how it was split."""

    url: NonEmpty
    """Address of the public repository or page."""
    commit: str | None = None
    """Commit of the repository that was read."""
    path: str | None = None
    """Files inside the repository."""
    split: str | None = None
    """Assignment of rows to this file."""
    licence: str | None = None
    """Licence the origin states."""


def _one_mark(value: str) -> str:
    if len(value) != 1 or value.isalnum() or value in '"\r\n':
        raise ValueError(
            'a delimiter is one character such as "," or ";" or "\\t", no letter, digit, quote or line end'
        )
    return value


Delimiter = Annotated[str, AfterValidator(_one_mark)]


class _FileKeys(YamlBlock):
    file: NonEmpty | None = None
    """Path of a file; see ``DataFile``."""
    rows: int | None = Field(default=None, gt=0)
    """Number of rows the file must have."""
    sha256: Sha256 | None = None
    """Digest of the file's bytes as they lie on disk (packed, if it is packed)."""
    delimiter: Delimiter | None = Field(default=None, exclude=True)
    """Character between the columns of a CSV or TSV file; without it that of the header line."""
    origin: Origin | None = None
    """Public origin, printed when there is no mirror to fetch from."""


class DataFile(_FileKeys):
    """One file of rows: JSON lines or list, CSV, TSV, text (each also packed by gzip) or Parquet, told by its suffix."""

    file: NonEmpty
    """Path below the data folder; for a task file of your own first below the folder of the YAML file."""


class Hub(YamlBlock):
    """A data set of the ``datasets`` library."""

    name: NonEmpty
    """Name on the hub, such as ``tweet_eval``."""
    config: str | None = None
    """Configuration, such as ``hate``."""
    split: NonEmpty
    """Split, such as ``train``."""
    revision: str | None = None
    """Commit of the data set; without it the newest one is read."""


class Derive(YamlBlock):
    """Rows made from a split of another task; its fields, ``text`` and ``label`` are their columns."""

    task: NonEmpty
    """Name or path of the other task."""
    split: Split
    """Split whose rows are read."""


class Column(YamlBlock):
    """The value of a field, taken from a column of this row, of a later row, or of another file."""

    column: NonEmpty
    """Name of the column."""
    from_next_row: int = Field(default=0, ge=0)
    """Number of rows further down, among those `where` keeps; behind the last row it goes on at the first."""
    other: DataFile | None = None
    """Another file whose column is read instead, row by row, from the beginning again when it ends."""


class Source(_FileKeys):
    """Rows, and how they become examples. Exactly one of ``file``, ``hub`` and ``derive`` says where rows come from."""

    hub: Hub | None = None
    """A data set of the ``datasets`` library instead of a file."""
    derive: Derive | None = None
    """A split of another task instead of a file."""
    source: NonEmpty | None = None
    """Column that holds a whole text; it is taken apart by ``template``, whose names become columns as well."""
    template: NonEmpty | None = None
    """Template of the ``source`` column where it is not the task's own ``text``."""
    fields: dict[str, NonEmpty | Column] = Field(default_factory=dict)
    """Task field → column; a field that is not named here is read from the column of its own name."""
    target: NonEmpty | None = None
    """Column of the gold label; without it labels are bought of a seller that does not replay."""
    owned: bool = False
    """The labels are yours already: they cost nothing, and come before those that are bought; of train rows alone."""
    group: NonEmpty | None = None
    """Column of the group of a row: train rows of one group stay in one fold, and test scores are told by group too."""
    label_names: dict[Annotated[str, BeforeValidator(written_text)], Value] = Field(default_factory=dict)
    """Label as written in the rows → label of the task; labels not named here stay as they are."""
    where: dict[str, Value | tuple[Value, ...]] = Field(default_factory=dict)
    """Column → value (or list of values): only rows that agree are kept."""
    skip: int = Field(default=0, ge=0)
    """Number of rows to leave out at the beginning of the seeded order."""
    n: int | None = Field(default=None, gt=0)
    """Number of rows to keep, in the seeded order; without ``n`` and ``skip`` all rows stay in their own order."""
    seed: int = Field(default=0, ge=LEAST_SEED, le=LARGEST_SEED)
    """Seed of that order: ``skip: 7000`` of a seed never meets ``n: 7000`` of the same seed and file."""

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        places = [self.file, self.hub, self.derive, getattr(self, "split", None)]
        if sum(place is not None for place in places) != 1:
            choices = "`file`, `hub`, `derive` or (in a pool) `split`"
            raise ValueError(f"rows come from exactly one of {choices}; give one of them")
        if self.file is None and (self.rows or self.sha256 or self.delimiter):
            raise ValueError("`rows`, `sha256` and `delimiter` describe a `file`; remove them or give the file")
        if self.template is not None:
            if self.source is None:
                raise ValueError("`template` takes the `source` column apart; name that column")
            compiled(self.template)
        return self

    @model_validator(mode="after")
    def _owned_labels(self) -> Source:
        if self.owned and self.target is None:
            raise ValueError("`owned` labels stand in a column; name it by `target`, or remove `owned`")
        return self

    @property
    def data_file(self) -> DataFile | None:
        """The file of this source, or None when its rows come from elsewhere."""
        if self.file is None:
            return None
        return DataFile(**{key: getattr(self, key) for key in DataFile.model_fields})

    def files(self) -> list[DataFile]:
        """Return all files this source reads: its own and those its columns are taken from."""
        own = [self.data_file] if self.data_file else []
        return own + [c.other for c in self.fields.values() if isinstance(c, Column) and c.other]


class PoolSource(Source):
    """One part of the unlabelled pool; labels its rows may carry are never read."""

    name: NonEmpty
    """Name of the part, printed in plans and receipts."""
    split: Literal["train"] | None = None
    """``train``: the sources of the training split."""
    distinct: bool = False
    """Leave out rows whose whole source came before in the pool; ``n`` then counts the rows that are left."""

    @field_validator("group")
    @classmethod
    def _no_groups(cls, group: str | None) -> None:
        if group is not None:
            raise ValueError("a pool is not shared out; remove `group`")

    @field_validator("target")
    @classmethod
    def _no_labels(cls, target: str | None) -> None:
        if target is not None:
            raise ValueError("a pool is unlabelled; remove `target`")


class Data(YamlBlock):
    """The three splits that have labels, or get them."""

    train: Source
    """Rows whose labels are for sale; without ``target`` a seller other than `replay` has to know them."""
    more_train: tuple[Source, ...] = ()
    """More of them from other files, read behind those of ``train``."""
    dev: Source | None = None
    """Rows to choose models on; see the task's ``dev``."""
    test: Source
    """Rows that are scored once, at the end; see the task's ``test``."""

    def sources_of(self, split: Split) -> list[Source]:
        """Return the sources of one split in the order they are read; none where the split is not given."""
        if split == "train":
            return [self.train, *self.more_train]
        one = self.dev if split == "dev" else self.test
        return [] if one is None else [one]
