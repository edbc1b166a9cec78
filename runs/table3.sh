#!/usr/bin/env bash
# Table 3: what stage 1 and codeswitching each do.
#     bash runs/table3.sh [SCALE] [--knob=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/methods.sh"
methods joint codeswitch_only init_only prealign
xnli joint codeswitch_only init_only prealign
report
