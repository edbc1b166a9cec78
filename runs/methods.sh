# Sourced by table*.sh and figures.sh, which are called with a scale (the name of a file in config/, demo unless given; "paper" is
# 150m) and any --knob=value, which goes to every command. What is finished is skipped, so a script can be interrupted and started
# again. SEEDS="1 2 3" repeats; LAUNCH="torchrun ..." trains on several GPUs.
#     methods NAME ...     train and evaluate methods of config/method
#     transfer NAME ...    fine-tune them on inference and test that in every language
#     dynamics NAME ...    train them on facts that come period by period (config/dynamics), and measure along the way
#     report               print and write the report of all that is there
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
SCALE=${1:-demo}
[ $# -gt 0 ] && shift
[ "$SCALE" = paper ] && SCALE=150m
CONFIG=config/$SCALE.py
if [ ! -f "$CONFIG" ]; then
    echo "error: there is no $CONFIG; the first argument is a scale: paper $(cd config && ls -- *.py | sed 's/\.py$//' | paste -sd' ')" >&2
    exit 1
fi
LAUNCH=${LAUNCH:-python}
SEEDS=${SEEDS:-1}
KNOBS=("$@")
ARGUMENTS=("$CONFIG" ${KNOBS[@]+"${KNOBS[@]}"})

knob() {  # the value of a knob of this scale
    python -c 'import config, sys; print(getattr(config.load(sys.argv[2:]), sys.argv[1]))' "$1" "${ARGUMENTS[@]}"
}
OUT=$(knob out_dir)
DATA=$(knob data_dir)

each() {  # each COMMAND NAME ...: COMMAND with the folder and the arguments of every method's run, for every seed
    local command=$1 name seed
    shift
    for name in "$@"; do
        for seed in $SEEDS; do
            "$command" "$(knob out_dir)/$name/seed$seed" "${ARGUMENTS[@]}" "config/method/$name.py" --seed="$seed"
        done
    done
}

train() {
    local folder=$1
    shift
    if grep -q '^init_from = "align"' "${@: -2:1}"; then
        $LAUNCH prealign.py "$@"
    fi
    $LAUNCH train.py "$@"
}

evaluate() { [ "$1/eval.json" -nt "$1/checkpoint.pt" ] || python eval.py "${@:2}"; }
evaluate_transfer() { [ "$1/xnli.json" -nt "$1/checkpoint.pt" ] || python eval.py xnli "${@:2}"; }
evaluate_dynamics() { [ "$1/dynamics.jsonl" -nt "$1/checkpoint.pt" ] || python eval.py dynamics "${@:2}"; }

methods() {
    python data.py "${ARGUMENTS[@]}"
    each train "$@"
    each evaluate "$@"
}

transfer() { each evaluate_transfer "$@"; }

dynamics() {
    local ARGUMENTS=("$CONFIG" "config/dynamics/$SCALE.py" ${KNOBS[@]+"${KNOBS[@]}"} --out_dir="$OUT/dynamics" --data_dir="${DATA}_dynamics")
    python data.py "${ARGUMENTS[@]}"
    each train "$@"
    each evaluate_dynamics "$@"
}

report() { python eval.py report "$OUT"; }
