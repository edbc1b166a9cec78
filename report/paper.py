"""The paper's tables, read from paper.md beside this file."""

from pathlib import Path
from typing import NamedTuple


class PaperTable(NamedTuple):
    name: str
    scale: str       # as "150M parameters, 10.1B tokens"
    columns: list[str]
    rows: dict[str, dict[str, float | None]]  # method -> column -> number

    @property
    def millions(self) -> float:
        """Its parameters."""
        return float(self.scale.partition("M")[0])

    @property
    def languages(self) -> set[str]:
        return {column.removeprefix("ppl ") for column in self.columns if column.startswith("ppl ")}


# Read as text, so that paper.md is what people read too.
def parse(section: str) -> PaperTable:
    """A section of paper.md: a heading "NAME: SCALE", and a Markdown table in which some cells are empty."""
    name, _, scale = section.partition("\n")[0].partition(": ")
    header, _, *rows = [[c.strip() for c in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"]
    numbers = {row[0]: {c: float(v) if v else None for c, v in zip(header[1:], row[1:])} for row in rows}
    return PaperTable(name, scale, header[1:], numbers)


PAPER = [parse(s) for s in Path(__file__).with_name("paper.md").read_text(encoding="utf-8").split("\n## ")[1:]]
