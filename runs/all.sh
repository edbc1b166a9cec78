#!/usr/bin/env bash
# Every table and figure, at one scale. Table 6 only where its text is (docs/reproduce.md).
#     bash runs/all.sh [SCALE] [--knob=value ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for script in table1 table2 table3 table4 table5; do
    REPORT=no bash "runs/$script.sh" "$@"
done
bash runs/figures.sh "$@"  # whose report is of them all
missing=
scale=${1:-demo}
# A size is laid on the paper's.
[ -f "config/table6/$scale.py" ] || [ -f "config/size/$scale.py" ] || missing+=" config/table6/$scale.py"
for language in en de zh ru ar; do
    [ -d "texts/$language" ] || missing+=" texts/$language/"
    [ "$language" = en ] || [ -f "dictionaries/en-$language.txt" ] || missing+=" dictionaries/en-$language.txt"
done
if [ -z "$missing" ]; then
    own=()  # its text and folders are its own
    for argument in "$@"; do
        case $argument in --source=* | --data_dir=* | --out_dir=*) ;; *) own+=("$argument") ;; esac
    done
    bash runs/table6.sh ${own[@]+"${own[@]}"}
else
    echo "Table 6 is left out: it needs$missing"
fi
