# Sourced by table*.sh: `methods NAME ...` trains, evaluates and fine-tunes methods, for every seed of SEEDS, and reports, at the
# scale that the script was called with: a config file's name, demo unless given. Further arguments of the script go to every command.
# What is finished is skipped, so a script can be interrupted and started again. LAUNCH="torchrun ..." for several GPUs.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
SCALE=${1:-demo}
[ $# -gt 0 ] && shift
CONFIG=config/$SCALE.py
if [ ! -f "$CONFIG" ]; then
    echo "error: there is no $CONFIG; the first argument is a scale: $(cd config && ls -- *.py | sed 's/\.py$//' | paste -sd' ')" >&2
    exit 1
fi
LAUNCH=${LAUNCH:-python}
ARGUMENTS=("$CONFIG" "$@")
SEEDS=${SEEDS:-1}

knob() {  # the value of a knob of this scale
    python -c 'import config, sys; print(getattr(config.load(sys.argv[2:]), sys.argv[1]))' "$1" "${ARGUMENTS[@]}"
}
OUT=$(knob out_dir)

method() {
    local file=config/method/$1.py seed folder
    for seed in $SEEDS; do
        local run=("${ARGUMENTS[@]}" "$file" --seed="$seed")
        if grep -q '^init_from = "align"' "$file"; then
            $LAUNCH prealign.py "${run[@]}"
        fi
        $LAUNCH train.py "${run[@]}"
        folder=$OUT/$1/seed$seed
        [ "$folder/eval.json" -nt "$folder/checkpoint.pt" ] || python eval.py "${run[@]}"
        [ "$folder/xnli.json" -nt "$folder/checkpoint.pt" ] || python eval.py xnli "${run[@]}"
    done
}

methods() {
    local name
    python data.py "${ARGUMENTS[@]}"
    for name in "$@"; do
        method "$name"
    done
    python eval.py report "$OUT"
}
