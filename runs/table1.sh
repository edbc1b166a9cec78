#!/usr/bin/env bash
# Table 1: joint training, PreAlign, and the bounds on both sides.
#     bash runs/table1.sh [SCALE] [--knob=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/methods.sh"
methods only_target joint prealign full_target
xnli joint prealign
report
