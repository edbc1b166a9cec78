#!/usr/bin/env bash
# Table 6: real languages, all targets aligned at once. The config, config/table6_SCALE.py, says which text and dictionaries it reads.
#     bash runs/table6.sh [SCALE] [--knob=value ...]
# With --nli_train, --nli_dev and --nli_test given (files in every language, as XNLI has them) zero-shot transfer is measured too.
set -euo pipefail
scale=${1:-demo}
[ $# -gt 0 ] && shift
set -- "table6_${scale/#paper/150m}" "$@"
source "$(dirname "${BASH_SOURCE[0]}")/methods.sh"
methods joint prealign
[ "$(knob nli_test "${ARGUMENTS[@]}")" = builtin ] || transfer joint prealign
report
