#!/usr/bin/env bash
# All tests, in a virtual environment made here if there is none. Arguments go to pytest:
#     bash runs/test.sh -k codeswitch
#     bash runs/test.sh -m "not slow"        # without tests that start several processes, compile or kill
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
python -m pytest -q tests "$@"
