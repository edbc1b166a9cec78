"""Every evaluated run of a folder in one report: `python -m report out/demo`."""

from report.tables import main
from runtime import errors

errors.run(main)
