#!/usr/bin/env bash
# English to En-Clone, from nothing to a table: data, joint training, PreAlign (stage 1, stage 2), evaluation, report.
# Run it again and it goes on where it stopped. SEEDS="1 2 3" repeats; arguments go to every command:
#     bash runs/demo.sh --out_dir=out/long --max_steps=11000
set -euo pipefail
set -- demo "$@"
source "$(dirname "${BASH_SOURCE[0]}")/methods.sh"

# For the commands printed at the end: quoted, to be pasted into a shell.
knobs=
for argument in ${KNOBS[@]+"${KNOBS[@]}"}; do knobs+=$(printf " %q" "$argument"); done

# Joint training runs beside PreAlign, each on half of the cores: for so small a model more threads are hardly faster.
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((cores + 1) / 2))}
# A job has a process group of its own: when this script ends early, so does joint training, which saves what it has.
set -m
trap 'kill -- -"${joint:-}" 2> /dev/null || true' EXIT

both() { train "$@"; evaluate "$@"; }

python data.py "${ARGUMENTS[@]}"
mkdir -p "$OUT"
for seed in $SEEDS; do
    log=$OUT/joint_seed$seed.log
    echo "joint training runs beside this and writes $log"
    both "${ARGUMENTS[@]}" config/method/joint.py --seed="$seed" > "$log" 2>&1 &
    joint=$!
    both "${ARGUMENTS[@]}" config/method/prealign.py --seed="$seed"
    wait "$joint" || { tail -n 3 "$log" >&2; exit 1; }
    joint=
    grep -v " step " "$log" || true
done
echo
report
cat <<END

Everything is in $OUT: report.md with figures, report.json, and for every run METHOD/seedN/ with run.json (config,
versions), metrics.jsonl (the curves), checkpoint.pt and eval.json. The data is in $DATA; its table.tsv is the alignment
table.
Next:
    SEEDS="1 2 3" bash runs/demo.sh$knobs   # three seeds, mean and standard deviation
    .venv/bin/python train.py config/demo.py config/method/prealign.py$knobs --method=my_idea --codeswitch_ratio=0.2
    .venv/bin/python eval.py  config/demo.py config/method/prealign.py$knobs --method=my_idea --codeswitch_ratio=0.2
    .venv/bin/python -m report "$OUT"   # your row beside the others
    .venv/bin/python train.py --help            # every knob
END
