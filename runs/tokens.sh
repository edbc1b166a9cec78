#!/usr/bin/env bash
# When PreAlign pays: joint training and PreAlign with about 20, 60, 200, 500 and 1,000 En-Clone tokens for each id of
# the vocabulary, all of one total budget.
#     bash runs/tokens.sh [SCALE] [--knob=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/methods.sh"

mix() {  # mix TOKENS ARGUMENT ...: the weights that give En-Clone so many tokens for each id of a trained vocabulary
    python -c 'from runtime import config, errors
def main(arguments):
    c = config.load(arguments[1:])
    share = round(int(arguments[0]) * c.vocab_size / (c.max_steps * c.batch_size * c.block_size), 5)
    print({c.pivot: round(1 - share, 5), "clone": share})
errors.run_main(main)' "$@"
}

share() {  # share TOKENS: both methods with that mix
    local weights
    weights=$(mix "$1" "${ARGUMENTS[@]}")
    local ARGUMENTS=("${ARGUMENTS[@]}" --mix="$weights" --out_dir="$OUT/tokens/$1")
    methods joint prealign
}

for tokens in 20 60 200 500 1000; do share "$tokens"; done
[ "${REPORT:-yes}" = no ] || python -m tools.tokens "$OUT/tokens"
