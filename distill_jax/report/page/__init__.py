"""The report: one self-contained HTML file, made of plain data."""

from distill_jax.report.page.active import Queried, page_of_active
from distill_jax.report.page.blocks import (
    Cell,
    Command,
    Facts,
    Figure,
    Figures,
    Folded,
    Page,
    Section,
    Sentence,
    Table,
    Text,
    render,
    show,
    write,
)
from distill_jax.report.page.comparison import Verdict, page_of_comparison
from distill_jax.report.page.errata import ERRATA, errata_section
from distill_jax.report.page.run import page_of_run

__all__ = [
    "ERRATA",
    "Cell",
    "Command",
    "Facts",
    "Figure",
    "Figures",
    "Folded",
    "Page",
    "Queried",
    "Section",
    "Sentence",
    "Table",
    "Text",
    "Verdict",
    "errata_section",
    "page_of_active",
    "page_of_comparison",
    "page_of_run",
    "render",
    "show",
    "write",
]
