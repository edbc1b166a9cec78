# Sourced by table*.sh, figures.sh and tokens.sh, which are called with a scale (demo unless given) and any
# --knob=value, for every command. A scale is the name of a file in config/, or of one in config/size/, on top of
# config/paper.py. What is finished is skipped, so a script can be interrupted and started again. SEEDS="1 2 3" repeats;
# LAUNCH="torchrun ..." trains on several GPUs.
#     methods NAME ...     train and evaluate methods of config/method
#     xnli NAME ...        fine-tune them on inference and test that in every language
#     dynamics NAME ...    train them on facts that come period by period (config/dynamics), and measure along the way
#     report               print and write the report of all that is there (not with REPORT=no)
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
SCALE=${1:-demo}
[ $# -gt 0 ] && shift
BASE=$SCALE
if [ -f "config/size/$SCALE.py" ]; then BASE=paper; fi
LAUNCH=${LAUNCH:-python}
SEEDS=${SEEDS:-1}
KNOBS=("$@")

configs() {  # configs [EXPERIMENT]: sets CONFIGS, the scale's config, what the experiment changes in it, and the size
    CONFIGS=("config/$BASE.py" ${1:+"config/$1/$BASE.py"})
    if [ "$BASE" != "$SCALE" ]; then CONFIGS+=("config/size/$SCALE.py"); fi
}

knob() {  # knob NAME ARGUMENT ...: its value where a command has these arguments
    python -c 'from runtime import config, errors
errors.run_main(lambda arguments: print(getattr(config.load(arguments[1:]), arguments[0])))' "$@"
}

configs "${EXPERIMENT:-}"
ARGUMENTS=("${CONFIGS[@]}")
# A size has a folder of its own, unless --out_dir names one.
if [ "$BASE" != "$SCALE" ]; then ARGUMENTS+=(--out_dir="$(knob out_dir "${CONFIGS[@]}")_$SCALE"); fi
ARGUMENTS+=(${KNOBS[@]+"${KNOBS[@]}"})
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
    # Some argument is a method that begins with stage 1; those that are no files are passed over.
    if grep -qs '^init_from = "align"' -- "$@"; then
        $LAUNCH prealign.py "$@"
    fi
    $LAUNCH train.py "$@"
}

evaluate() { python eval.py "$@"; }
evaluate_xnli() { python eval.py xnli "$@"; }
evaluate_dynamics() { python -m tools.dynamics "$@"; }

methods() {
    python data.py "${ARGUMENTS[@]}"
    each train "$@"
    each evaluate "$@"
}

xnli() { each evaluate_xnli "$@"; }

dynamics() {
    configs dynamics
    local ARGUMENTS=("${CONFIGS[@]}" ${KNOBS[@]+"${KNOBS[@]}"} --out_dir="$OUT/dynamics" --data_dir="${DATA}_dynamics")
    python data.py "${ARGUMENTS[@]}"
    each train "$@"
    each evaluate_dynamics "$@"
}

report() { [ "${REPORT:-yes}" = no ] || python -m report "$OUT"; }
