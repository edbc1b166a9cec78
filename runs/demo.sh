#!/usr/bin/env bash
# English to En-Clone, from nothing to a table: data, joint training, PreAlign (stage 1, stage 2), evaluation, report.
# Run it again and it goes on where it stopped. SEEDS="1 2 3" repeats; arguments go to every command:
#     OUT_DIR=out/long bash runs/demo.sh --max_steps=11000
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

OUT_DIR=${OUT_DIR:-out/demo}
set -- "$@" --out_dir="$OUT_DIR"
# For the commands printed at the end: quoted, to be pasted into a shell.
knobs=$(printf " %q" "$@")

# Joint training runs beside PreAlign, each on half of the cores: for so small a model more threads are hardly faster.
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((cores + 1) / 2))}
# A job has a process group of its own: when this script ends early, so does joint training, which saves what it has.
set -m
trap 'kill -- -"${joint:-}" 2> /dev/null || true' EXIT

python data.py config/demo.py "$@"
mkdir -p "$OUT_DIR"
for seed in ${SEEDS:-1}; do
    log=$OUT_DIR/joint_seed$seed.log
    echo "joint training runs beside this and writes $log"
    {
        python train.py config/demo.py config/method/joint.py    --seed="$seed" "$@"
        python eval.py  config/demo.py config/method/joint.py    --seed="$seed" "$@"
    } > "$log" 2>&1 &
    joint=$!
    python prealign.py config/demo.py                           --seed="$seed" "$@"
    python train.py    config/demo.py config/method/prealign.py --seed="$seed" "$@"
    python eval.py     config/demo.py config/method/prealign.py --seed="$seed" "$@"
    wait "$joint" || { tail -n 3 "$log" >&2; exit 1; }
    joint=
    grep -v " step " "$log" || true
done
echo
python -m report "$OUT_DIR"
cat <<END

Everything is in $OUT_DIR: report.md with figures, report.json, and for every run METHOD/seedN/ with run.json (config,
versions), metrics.jsonl (the curves), checkpoint.pt and eval.json. The data is in data_dir (bins/demo); table.tsv is
its alignment table.
Next:
    SEEDS="1 2 3" OUT_DIR="$OUT_DIR" bash runs/demo.sh$knobs   # three seeds, mean and standard deviation
    .venv/bin/python train.py config/demo.py config/method/prealign.py$knobs --method=my_idea --codeswitch_ratio=0.2
    .venv/bin/python eval.py  config/demo.py config/method/prealign.py$knobs --method=my_idea --codeswitch_ratio=0.2
    .venv/bin/python -m report "$OUT_DIR"   # your row beside the others
    .venv/bin/python train.py --help            # every knob
END
