#!/usr/bin/env bash
# Table 6: real languages, all targets aligned at once. config/table6/SCALE.py says what text and dictionaries it reads.
#     bash runs/table6.sh [SCALE] [--knob=value ...]
# With --nli_train, --nli_dev and --nli_test given (files in every language, as XNLI has them) zero-shot transfer is
# measured too.
set -euo pipefail
EXPERIMENT=table6
source "$(dirname "${BASH_SOURCE[0]}")/methods.sh"
methods joint prealign
[ "$(knob nli_test "${ARGUMENTS[@]}")" = builtin ] || xnli joint prealign
report
