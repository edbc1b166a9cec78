#!/usr/bin/env bash
# Table 4: do models mix languages when they write? Vanilla, the released variant, input-only.
#     bash runs/table4.sh [SCALE] [--knob=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/methods.sh"
methods vanilla_codeswitch original_codeswitch prealign
report
