#!/usr/bin/env bash
# Table 2: aligning on the fly or after pretraining, with as many tokens as PreAlign.
#     bash runs/table2.sh [SCALE] [--knob=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/methods.sh"
methods joint on_the_fly post prealign
xnli joint on_the_fly post prealign
report
