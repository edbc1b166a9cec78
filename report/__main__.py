"""
Every evaluated run of a folder in one report: printed, and written as report.md, report.json and figures/*.png.

    python -m report out/demo        # with OUT_DIR/notes.md in it, if there is one
"""

from pathlib import Path

from report.figures import draw
from report.results import dynamics_in, runs_in
from report.tables import report_tables
from runtime.errors import UserError, run_main
from runtime.files import write_json, write_text


def main(arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError("expected: python -m report OUT_DIR")
    folder, runs, dynamics = Path(*arguments), runs_in(*arguments), dynamics_in(*arguments)
    text = f"# {folder}\n\n{report_tables(runs)}\n"
    # What people have written about the runs stands between their tables and their figures.
    if (notes := folder / "notes.md").exists():
        text += "\n" + notes.read_text(encoding="utf-8")
    print(text)
    write_text(f"{folder}/report.md", text + draw(folder, runs, dynamics))
    write_json(f"{folder}/report.json", {"runs": runs})


if __name__ == "__main__":
    run_main(main)
