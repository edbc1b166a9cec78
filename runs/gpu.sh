#!/usr/bin/env bash
# On a machine with one NVIDIA GPU and no network, with the Python that is there:
#     bash runs/gpu.sh check        # the tests of what a GPU changes, 150 seconds at most
#     bash runs/gpu.sh speed        # tools/bench.py at the paper's sizes and transformers' GPT-2, 400 seconds at most
#     bash runs/gpu.sh reproduce    # Tables 1, 3 and 4 with config/gpu.py, the first methods first, 480 seconds at most
# It needs texts/en/ (some 70 MB of English, as it is or .xz), and where a requirement is not installed wheels/, which
# runs/wheels.sh fills. --limit=SECONDS is when it ends, --out=FOLDER ($OUT, or out/gpu/PART) what it fills: PART.log
# and a file of JSON lines, line by line; reproduce leaves its report there too. What there was when the time ended is
# kept, and reproduce goes on from it. --device=cpu does it all at toy size, on the README.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
part=${1:-}
case $part in
    check) limit=150 ;;
    speed) limit=400 ;;
    reproduce) limit=480 ;;
    *) echo "error: expected runs/gpu.sh check, speed or reproduce; found '$part'" >&2; exit 1 ;;
esac
out=${OUT:-out/gpu/$part} device=cuda
for argument in "${@:2}"; do
    case $argument in
        --limit=*) limit=${argument#*=} ;;
        --out=*) out=${argument#*=} ;;
        --device=cpu | --device=cuda) device=${argument#*=} ;;
        *) echo "error: expected --limit=SECONDS, --out=FOLDER or --device=cpu, found $argument" >&2; exit 1 ;;
    esac
done
if ! [[ $limit =~ ^[0-9]+$ ]]; then
    echo "error: --limit: expected whole seconds, found '$limit'" >&2
    exit 1
fi
mkdir -p "$out"
# What data.py and the runs write is not for $out: on a GPU large and gone on with, else thrown away with the rest.
data=bins/gpu work=out/gpu
[ "$device" = cuda ] || { data=$out/toy work=$out/toy; }
export PYTHONUNBUFFERED=1

missing() {  # which of these modules Python does not find
    "$PYTHON" -c 'import sys; from importlib.util import find_spec as f
print(*(m for m in sys.argv[1:] if f(m) is None))' "$@"
}

install() {  # what is missing of requirements.txt, and of what nltk needs, into a folder of our own
    local packages absent
    packages=$PWD/out/gpu/packages-$("$PYTHON" -c 'import sys; print(*sys.version_info[:2], sep=".")')
    export PYTHONPATH=$PWD:$packages${PYTHONPATH:+:$PYTHONPATH}
    # shellcheck disable=SC2046
    absent=$(missing $(sed '/^#/d; s/==.*//' requirements.txt) click cloudpickle defusedxml joblib)
    # shellcheck disable=SC2086
    if [ -n "$absent" ] && ! "$PYTHON" -m pip install --quiet --no-index --find-links=wheels --no-deps \
            --target="$packages" $absent; then
        echo "error: $PYTHON has no $absent; where there is a network, runs/wheels.sh fills wheels/ with all but" \
            "torch, numpy, matplotlib and pytest; PYTHON=... names another Python" >&2
        return 1
    fi
}

run() {  # a command, for as long as there is time; SIGTERM then lets it save what it has
    local left=$((limit - SECONDS)) code=0
    [ "$left" -gt 0 ] && timeout --kill-after=20 "$left" "$@" || code=$?
    [ "$((limit - SECONDS))" -gt 0 ] || { echo "the $limit seconds are over"; return 124; }
    return "$code"
}

text() {  # the source that data.py reads
    if [ "$device" = cpu ]; then
        cp README.md "$out/toy.txt"
        echo "$out/toy.txt"
    elif compgen -G "texts/en/*" > /dev/null; then
        echo texts/en
    else
        echo builtin
    fi
}

check() {
    [ "$device" = cuda ] || export PREALIGN_TEST_DEVICE=cpu OMP_NUM_THREADS=1
    run "$PYTHON" - "$out/check.jsonl" <<'END'
import json
import signal
import sys

import pytest

signal.signal(signal.SIGTERM, signal.default_int_handler)  # pytest then says what has failed so far


class Record:
    lines = open(sys.argv[1], "w", encoding="utf-8", buffering=1)

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            record = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
            self.lines.write(json.dumps(record | {"why": str(report.longrepr or "")}) + "\n")


sys.exit(pytest.main(["-v", "-m", "cuda", "-p", "no:cacheprovider", "tests/test_cuda.py"], plugins=[Record()]))
END
}

speed() {
    local source knobs first size sizes=()
    source=$(text)
    [ "$source" != builtin ] || echo "there is no text in texts/en/: speed is measured on the built-in text"
    if [ "$device" = cuda ]; then
        # GPT-2's vocabulary would have to be downloaded; the cost is that of the number of ids.
        # Of 8 rows a pass the plain loop's logits fit beside it.
        knobs=(--vocab_size=50257 --budget='{"en": 5e6}' --dtype=bf16 --micro_batch_size=8)
        first=config/paper.py sizes=(config/size/1.3b.py config/size/400m.py)
    else
        first=config/bench.py
        knobs=(--vocab_size=512 --min_count=3 --workers=1 --n_layer=2 --n_embd=32 --n_head=2 --batch_size=4
               --micro_batch_size=2 --block_size=32 --align_entries=16)
        export OMP_NUM_THREADS=1
    fi
    knobs+=(--source="$source" --tokenizer=train --val_fraction=0.02 --fact_count=0 --device="$device"
            --data_dir="${data}_speed" --out_dir="$out")
    run "$PYTHON" data.py "$first" "${knobs[@]}"
    # The first config's own size, then each of the others.
    for size in "" "${sizes[@]}"; do
        run "$PYTHON" -m tools.bench "$first" ${size:+"$size"} "${knobs[@]}"
    done
}

reproduce() {
    local source method begin knobs=()
    source=$(text)
    [ "$source" != builtin ] || { echo "error: there is no text in texts/en/; some 70 MB are needed" >&2; return 1; }
    if [ "$device" = cpu ]; then
        knobs=(--workers=1 --vocab_size=512 --min_count=3 --val_fraction=0.05 --fact_count=4 --fact_frequencies=3
               --n_layer=2 --n_embd=32 --n_head=2 --batch_size=4 --micro_batch_size=4 --block_size=64 --max_steps=12
               --stage1_steps=4 --align_entries=16 --eval_tokens=500 --eval_words=50 --sample_count=4
               --sample_tokens=4)
        export OMP_NUM_THREADS=1
    fi
    knobs+=(--source="$source" --data_dir="$data" --out_dir="$work/runs" --device="$device")
    run "$PYTHON" data.py config/gpu.py "${knobs[@]}"
    # One process for all methods: to start one, and a GPU in it, takes seconds of each one's minute.
    run "$PYTHON" - "$out" "$work/runs" "${knobs[@]}" <<'END'
import json
import os
import shutil
import sys
import tarfile
import time

import eval as evaluation
import prealign
import train
from report import __main__ as report
from runtime import errors

METHODS = ("joint", "prealign", "golden", "codeswitch_only", "init_only", "full_target", "vanilla_codeswitch")


def main(arguments):
    out, runs, *knobs = arguments
    lines = open(os.path.join(out, "reproduce.jsonl"), "w", encoding="utf-8", buffering=1)
    for method in METHODS:
        begun, begin = os.path.exists(os.path.join(runs, method)), time.perf_counter()
        if method == "prealign":
            prealign.main(["config/gpu.py", *knobs])  # for init_only too
        own = ["config/gpu.py", f"config/method/{method}.py", *knobs]
        train.main(own)
        evaluation.main(own)
        seconds = round(time.perf_counter() - begin, 1)
        with open(os.path.join(runs, method, "seed1", "eval.json"), encoding="utf-8") as f:
            lines.write(json.dumps(json.load(f) | {"seconds": None if begun else seconds}) + "\n")
        # The report as it now is, and all that the runs have left but their weights, side by side.
        report.main([runs])
        for name in ("report.md", "report.json"):
            shutil.copy(os.path.join(runs, name), out)
        archive = os.path.join(out, "runs.tar.gz")
        with tarfile.open(archive + ".tmp", "w:gz") as tar:
            tar.add(runs, "runs", filter=lambda file: None if file.name.endswith(".pt") else file)
        os.replace(archive + ".tmp", archive)
        if not begun:
            print(f"{method}: {seconds} seconds with evaluation" + ", and stage 1" * (method == "prealign"))


errors.run_main(main)
END
}

everything() {
    install
    [ "$device" = cpu ] || nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    "$part"
}

set +e  # here, as it would be off within what stands before an ||
(set -e; everything) 2>&1 | tee "$out/$part.log"
code=${PIPESTATUS[0]}
echo "$part: $SECONDS seconds, exit code $code, in $out" | tee -a "$out/$part.log"
exit "$code"
