#!/usr/bin/env bash
# Table 4: do models mix languages when they write? Vanilla or input-only codeswitching.
#     bash runs/table4.sh [SCALE] [--knob=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/methods.sh"
methods vanilla_codeswitch prealign
report
