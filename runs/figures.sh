#!/usr/bin/env bash
# Figures 4 and 5 (learning dynamics, similarity over training) and 6 (seen and unseen words).
#     bash runs/figures.sh [SCALE] [--knob=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/methods.sh"
if [ -f "config/dynamics/$BASE.py" ]; then
    dynamics joint prealign
else
    echo "Figures 4 and 5 are left out: there is no config/dynamics/$BASE.py"
fi
methods joint coverage25 coverage50 coverage75 prealign
report
