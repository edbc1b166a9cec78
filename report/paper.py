"""The paper's tables, read from paper.md beside this file, which is what people read too."""

from pathlib import Path
from typing import NamedTuple


class PaperTable(NamedTuple):
    name: str
    scale: str  # as "150M parameters, 10.1B tokens"
    columns: list[str]
    rows: dict[str, dict[str, float | None]]  # method -> column -> number


def parse(section: str) -> PaperTable:
    """A section of paper.md: a heading "NAME: SCALE", and a Markdown table in which some cells are empty."""
    title, *lines = section.splitlines()
    name, scale = title.split(": ")
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    numbers = {method: {column: float(cell) if cell else None for column, cell in zip(header[1:], cells)}
               for method, *cells in rows}
    return PaperTable(name, scale, header[1:], numbers)


# The first section is the page's own heading.
PAPER = [parse(s) for s in Path(__file__).with_name("paper.md").read_text(encoding="utf-8").split("\n## ")[1:]]
