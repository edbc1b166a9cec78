# Sourced by the other scripts, or run alone: a virtual environment in .venv with requirements.txt, made once, and made
# anew when that changes.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: Python 3.11 or newer is needed, found $("$PYTHON" --version); set PYTHON=/path/to/python3.11" >&2
    exit 1
fi
if ! cmp -s requirements.txt .venv/installed.txt; then
    echo "installing requirements.txt into .venv"
    "$PYTHON" -m venv .venv
    .venv/bin/python -m pip install --quiet -r requirements.txt
    cp requirements.txt .venv/installed.txt
fi
export PATH="$PWD/.venv/bin:$PATH"
