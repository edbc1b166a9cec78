#!/usr/bin/env bash
# English to En-Clone, from nothing to a table: data, joint training, PreAlign (stage 1, stage 2), evaluation, report.
# Run it again and it goes on where it stopped. SEEDS="1 2 3" repeats; arguments go to every command:
#     OUT_DIR=out/long bash runs/demo.sh --max_steps=3000
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

OUT_DIR=${OUT_DIR:-out/demo}
set -- "$@" --out_dir="$OUT_DIR"

python data.py config/demo.py "$@"
for seed in ${SEEDS:-1}; do
    python train.py    config/demo.py config/method/joint.py    --seed="$seed" "$@"
    python eval.py     config/demo.py config/method/joint.py    --seed="$seed" "$@"
    python prealign.py config/demo.py                           --seed="$seed" "$@"
    python train.py    config/demo.py config/method/prealign.py --seed="$seed" "$@"
    python eval.py     config/demo.py config/method/prealign.py --seed="$seed" "$@"
done
echo
python -m report "$OUT_DIR"
cat <<END

Everything is in $OUT_DIR: report.md with figures, report.json, and for every run METHOD/seedN/ with run.json (config,
versions), metrics.jsonl (the curves), checkpoint.pt and eval.json. The data is in data_dir (bins/demo); table.tsv is
its alignment table.
Next:
    SEEDS="1 2 3" bash runs/demo.sh $*          # three seeds, mean and standard deviation
    .venv/bin/python train.py config/demo.py config/method/prealign.py $* --method=my_idea --codeswitch_ratio=0.2
    .venv/bin/python eval.py  config/demo.py config/method/prealign.py $* --method=my_idea --codeswitch_ratio=0.2
    .venv/bin/python -m report $OUT_DIR   # your row beside the others
    .venv/bin/python train.py --help            # every knob
END
