"""What a page is made of, and how it becomes one HTML file.

A `Page` is plain data: sections of blocks. `write` fills the template beside this file;
style and script are copied into it, figures are SVG inside it, so the file needs
nothing else, and its content security policy lets it load nothing else. Every text is
escaped.
"""

import base64
import csv
import hashlib
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike

_FILES = Path(__file__).parent
_MOST_LABELS = 8


@dataclass(frozen=True)
class Cell:
    """A cell that reads otherwise than it sorts.

    Attributes:
        text: what is shown.
        value: what a column is sorted by; None stays last.
    """

    text: str
    value: float | str | None = None


Value = Cell | str | float | int | bool | None


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Command:
    """A command line, to be copied."""

    kind: ClassVar[str] = "command"
    text: str


@dataclass(frozen=True)
class Table:
    """A table that a reader can sort by any column.

    Attributes:
        caption: what it shows; also its name for a screen reader.
        columns: names of the columns.
        rows: cells; numbers are shown to four digits, None as a dash.
        strong: indices of the rows to set apart.
        sortable: False where the order is the point.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    strong: Sequence[int] = ()
    sortable: bool = True

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.caption!r}: a row has {len(row)} cells for "
                    f"{len(self.columns)} columns"
                )

    @property
    def cells(self) -> list[list[Cell]]:
        """Every cell as shown and as sorted."""
        return [[_cell(value) for value in row] for row in self.rows]

    @property
    def numeric(self) -> list[bool]:
        """Of each column: does it hold numbers, and so stand on the right?"""
        columns = zip(*self.cells, strict=True) if self.rows else [()] * len(self)
        known = [[c.value for c in cells if c.value is not None] for cells in columns]
        return [bool(v) and not any(isinstance(i, str) for i in v) for v in known]

    @property
    def csv(self) -> str:
        """The values as comma-separated text, in a `data:` address."""
        content = io.StringIO()
        out = csv.writer(content, lineterminator="\n")
        out.writerow(self.columns)
        for row in self.cells:
            out.writerow([c.text if c.value is None else c.value for c in row])
        return "data:text/csv;charset=utf-8," + quote(content.getvalue())

    def __len__(self) -> int:
        return len(self.columns)


@dataclass(frozen=True)
class Figure:
    """A drawing and the numbers in it.

    Attributes:
        svg: its source, as `report.svg` gives it.
        alt: what it shows, for those who do not see it.
        caption: what stands below it.
        numbers: what is drawn, folded away below it.
    """

    kind: ClassVar[str] = "figure"
    svg: str
    alt: str
    caption: str
    numbers: Table | None = None

    @property
    def source(self) -> str:
        """As a `data:` address. As an image, its ids cannot clash with another's."""
        return "data:image/svg+xml;base64," + base64.b64encode(
            self.svg.encode()
        ).decode("ascii")


@dataclass(frozen=True)
class Figures:
    """Figures that stand side by side where there is room."""

    kind: ClassVar[str] = "figures"
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Facts:
    """Large numbers: `(number, what it is)`."""

    kind: ClassVar[str] = "facts"
    facts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Folded:
    """Blocks that open on a click, and are open in print."""

    kind: ClassVar[str] = "folded"
    title: str
    blocks: Sequence["Block"]


@dataclass(frozen=True)
class Sentence:
    """A distilled sentence in words.

    Attributes:
        title: its name.
        labels: `(name, probability)` of each class.
        words: `(nearest word, its cosine, the next nearest with theirs)`.
    """

    kind: ClassVar[str] = "sentence"
    title: str
    labels: Sequence[tuple[str, float]]
    words: Sequence[tuple[str, float, str]] = ()

    @property
    def likely(self) -> list[tuple[str, float]]:
        """The classes, the most probable first; where many, the rest in one."""
        ordered = sorted(self.labels, key=lambda item: -item[1])
        if len(ordered) <= _MOST_LABELS:
            return ordered
        first, rest = ordered[: _MOST_LABELS - 1], ordered[_MOST_LABELS - 1 :]
        return [*first, (f"{len(rest)} others", sum(share for _, share in rest))]

    @property
    def shaded(self) -> list[tuple[str, float, str, int]]:
        """The words with a shade from 0 (cosine below 0.2) to 4 (0.8 and above)."""
        return [(*word, min(max(int(word[1] * 5), 0), 4)) for word in self.words]


Block = Text | Command | Table | Figure | Figures | Facts | Folded | Sentence


@dataclass(frozen=True)
class Section:
    """A part of a page with its own heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """One HTML file.

    Attributes:
        title: its heading.
        summary: the answer in a sentence or two.
        facts: the few numbers to remember.
        sections: the rest.
    """

    title: str
    summary: str
    facts: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = field(default_factory=tuple)


def percent(value: float | None, sd: float | None = None) -> Cell:
    """A fraction in %, with its standard deviation where there is one."""
    if value is None:
        return Cell("–")
    spread = "" if not sd else f" ± {100 * sd:.1f}"
    return Cell(f"{100 * value:.1f}{spread}", value)


def interval(low: float, high: float) -> Cell:
    """An interval of fractions in %, sorted by its lower end."""
    return Cell(f"{100 * low:.1f} to {100 * high:.1f}", low)


def table_of(caption: str, **columns: ArrayLike) -> Table:
    """A table from equally long columns, named by their keywords."""
    arrays = [np.asarray(column).tolist() for column in columns.values()]
    names = [name.replace("_", " ") for name in columns]
    return Table(caption, names, list(zip(*arrays, strict=True)))


def render(page: Page) -> str:
    """The HTML text of a page; equal pages give equal text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FILES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Part of this package, so not escaped; the hashes let these two run, and no more.
    style, script = (
        (_FILES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    return environment.get_template("page.html").render(
        page=page,
        style=style,
        script=script,
        policy=(
            "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
            f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
        ),
    )


def write(path: str | Path, page: Page) -> Path:
    """Writes a page as one self-contained HTML file.

    Args:
        path: a `.html` file; its folder is made if absent. A file that was there
            stays whole until the new one is.
        page: what to write.

    Returns:
        The path.

    Raises:
        ValueError: if the name does not end in .html.
        OSError: if it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise ValueError(f"a page's name must end in .html, got {path.name!r}")
    text = render(page)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    try:
        new.write_text(text, encoding="utf-8", newline="\n")
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    return path


def show(path: str | Path) -> bool:
    """Opens a page in the reader's browser; False if there is none."""
    import webbrowser

    return webbrowser.open(Path(path).resolve().as_uri())


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")


def _cell(value: Value) -> Cell:
    if isinstance(value, Cell):
        return value
    if value is None:
        return Cell("–")
    if isinstance(value, bool | np.bool_):
        return Cell("yes" if value else "no", "yes" if value else "no")
    if isinstance(value, int | np.integer):
        return Cell(f"{value:,}", int(value))
    if isinstance(value, float | np.floating):
        known = math.isfinite(value)
        return Cell(f"{value:.4g}" if known else "–", float(value) if known else None)
    return Cell(str(value), str(value))
