#!/usr/bin/env bash
# Table 5: how much of the table is needed.
#     bash runs/table5.sh [SCALE] [--knob=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/methods.sh"
methods joint coverage25 coverage50 coverage75 prealign
xnli joint coverage25 coverage50 coverage75 prealign
report
