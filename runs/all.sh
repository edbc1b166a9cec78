#!/usr/bin/env bash
# Every table and figure, at one scale; the report is printed by the last.
#     bash runs/all.sh [SCALE] [--knob=value ...]
set -euo pipefail
runs=$(dirname "${BASH_SOURCE[0]}")
for script in table1 table2 table3 table4 table5 figures; do
    bash "$runs/$script.sh" "$@"
done
