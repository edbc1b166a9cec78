# Sourced by table*.sh and figures.sh, which are called with a scale (the name of a file in config/, demo unless given; "paper" is
# 150m) and any --knob=value, which goes to every command. What is finished is skipped, so a script can be interrupted and started
# again. SEEDS="1 2 3" repeats; LAUNCH="torchrun ..." trains on several GPUs.
#     methods NAME ...     train and evaluate methods of config/method
#     transfer NAME ...    fine-tune them on inference and test that in every language
#     dynamics NAME ...    train them on facts that come period by period (config/dynamics), and measure along the way
#     report               print and write the report of all that is there (not with REPORT=no)
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
SCALE=${1:-demo}
[ $# -gt 0 ] && shift
[ "$SCALE" = paper ] && SCALE=150m
CONFIG=config/$SCALE.py
if [ ! -f "$CONFIG" ]; then
    kind=
    if [[ $SCALE == table6_* ]]; then kind=table6_; fi
    scales=$(cd config && ls -- "$kind"*.py | sed "s/\.py$//; s/^$kind//" | grep -v -e ^table6 -e ^bench | paste -sd' ' -)
    echo "error: there is no $CONFIG; the first argument is a scale: paper $scales" >&2
    exit 1
fi
LAUNCH=${LAUNCH:-python}
SEEDS=${SEEDS:-1}
KNOBS=("$@")
ARGUMENTS=("$CONFIG" ${KNOBS[@]+"${KNOBS[@]}"})

knob() {  # knob NAME ARGUMENT ...: its value where a command has these arguments
    python -c 'from runtime import config, errors; errors.run(lambda arguments: print(getattr(config.load(arguments[1:]), arguments[0])))' "$@"
}
OUT=$(knob out_dir "${ARGUMENTS[@]}")
DATA=$(knob data_dir "${ARGUMENTS[@]}")

each() {  # each COMMAND NAME ...: COMMAND with the arguments of every method's run, for every seed
    local command=$1 name seed
    shift
    for name in "$@"; do
        for seed in $SEEDS; do
            "$command" "${ARGUMENTS[@]}" "config/method/$name.py" --seed="$seed"
        done
    done
}

train() {
    if [ "$(knob init_from "$@")" = align ]; then
        $LAUNCH prealign.py "$@"
    fi
    $LAUNCH train.py "$@"
}

evaluate() { python eval.py "$@"; }
evaluate_transfer() { python eval.py xnli "$@"; }
evaluate_dynamics() { python eval.py dynamics "$@"; }

methods() {
    python data.py "${ARGUMENTS[@]}"
    each train "$@"
    each evaluate "$@"
}

transfer() { each evaluate_transfer "$@"; }

dynamics() {
    if [ ! -f "config/dynamics/$SCALE.py" ]; then
        echo "error: there is no config/dynamics/$SCALE.py, which says what facts come when at this scale" >&2
        exit 1
    fi
    local ARGUMENTS=("$CONFIG" "config/dynamics/$SCALE.py" ${KNOBS[@]+"${KNOBS[@]}"} --out_dir="$OUT/dynamics" --data_dir="${DATA}_dynamics")
    python data.py "${ARGUMENTS[@]}"
    each train "$@"
    each evaluate_dynamics "$@"
}

report() { [ "${REPORT:-yes}" = no ] || python -m report "$OUT"; }
