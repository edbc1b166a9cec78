"""
Every evaluated run of a folder in one report: printed, and written as report.md, report.json and figures/*.png.

    python -m report out/demo        # with OUT_DIR/notes.md in it, if there is one
"""

import os
from pathlib import Path

from report.figures import draw
from report.results import dynamics_in, runs_in
from report.tables import dynamics_table, report_tables
from runtime.errors import UserError, run
from runtime.files import write_json, write_text


def main(arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError("expected: python -m report OUT_DIR")
    out_dir = arguments[0]
    runs, dynamics = runs_in(out_dir, report_tables), dynamics_in(out_dir, dynamics_table)
    if not runs:
        raise UserError(f"no evaluated run in {out_dir}; expected METHOD/seedN/eval.json, made by eval.py")
    text = report_tables(runs, dynamics)
    # What people have written about the runs stands between their tables and their figures.
    notes = Path(out_dir, "notes.md")
    if notes.exists():
        text += f"\n\n{notes.read_text(encoding='utf-8').strip()}"
    print(f"{text}\n")
    for file, title, caption in draw(out_dir, runs, dynamics):
        print(f"{title}: {os.path.join(out_dir, file)}")
        text += f"\n\n## {title}\n\n![{title}]({file})\n\n{caption}"
    write_text(os.path.join(out_dir, "report.md"), f"# {out_dir}\n\n{text}\n")
    # Where words lie, thousands of numbers a run, is for the figure alone.
    numbers = [{key: value for key, value in result.items() if key != "components"} for result in runs]
    write_json(os.path.join(out_dir, "report.json"), {"runs": numbers})


if __name__ == "__main__":
    run(main)
