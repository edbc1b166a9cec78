#!/usr/bin/env bash
# Fill wheels/ with what a machine with PyTorch and no network may lack: requirements.txt and what it needs, without
# torch (and networkx and sympy, which come with it), numpy, matplotlib and pytest.
#     bash runs/wheels.sh [PYTHON_VERSION [PLATFORM ...]]        # for CPython 3.12 on x86_64 Linux, unless named
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
version=${1:-3.12}
[ $# -gt 0 ] && shift
if [ $# -eq 0 ]; then
    # pip compares these names to the letter: what runs with glibc 2.17 is no manylinux_2_28 to it.
    set -- manylinux2014_x86_64 manylinux_2_{5..34}_x86_64
fi
# shellcheck disable=SC2046
"${PYTHON:-python3}" -m pip download --quiet --only-binary=:all: --dest=wheels --python-version="$version" \
    --implementation=cp --abi="cp${version/./}" "${@/#/--platform=}" \
    $(grep -vE '^(#|torch|numpy|matplotlib|pytest|networkx|sympy)' requirements.txt)
ls -l wheels
