#!/usr/bin/env bash
# Text, dictionaries and inference data from the network, into the folders that the configs read:
#     bash runs/download.sh small                  # all that a scale reads: small, paper, table6_small or table6_paper
#     bash runs/download.sh culturax en 12         # texts/en/: the first 12 files of CulturaX's English
#     bash runs/download.sh muse de zh ru ar       # dictionaries/en-de.txt ...: MUSE, 1 or 2 MB each
#     bash runs/download.sh simplified             # Chinese text and dictionary in one script (pip install opencc)
#     bash runs/download.sh xnli                   # nli/: XNLI's dev and test pairs, MultiNLI's training pairs; 245 MB
#     bash runs/download.sh pawsx                  # nli/x-final/: PAWS-X; 30 MB
# Sizes are told before anything is fetched. What is there is left alone, what was interrupted goes on. For CulturaX one
# needs an account: docs/data.md says how.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# Every address. A variable of the environment names another server that has the same files.
CULTURAX=${CULTURAX:-uonlp/CulturaX}  # a data set of $HF_ENDPOINT, which is huggingface.co
MUSE=${MUSE:-https://dl.fbaipublicfiles.com/arrival/dictionaries}
XNLI=${XNLI:-https://dl.fbaipublicfiles.com/XNLI}
MULTINLI=${MULTINLI:-https://cims.nyu.edu/~sbowman/multinli}
PAWSX=${PAWSX:-https://storage.googleapis.com/paws/pawsx}
# SHA-256, where it is known.
XNLI_SHA256=${XNLI_SHA256:-4ba1d5e1afdb7161f0f23c66dc787802ccfa8a25a3ddd3b165a35e50df346ab1}
MULTINLI_SHA256=${MULTINLI_SHA256:-049f507b9e36b1fcb756cfd5aeb3b7a0cfcb84bf023793652987f7e7e0957822}

fail() {
    echo "error: $1" >&2
    exit 1
}

fetch() {  # fetch ADDRESS FILE [SHA256]: the whole file, or none of its name
    local bytes part=$2.part
    if [ -f "$2" ]; then
        echo "$2 is there"
        return
    fi
    mkdir -p "$(dirname "$2")"
    bytes=$(curl --fail --silent --show-error --location --head "$1" | tr -d '\r' |
            awk 'tolower($1) == "content-length:" {bytes = $2} END {print bytes}') || fail "$1 cannot be had"
    echo "$1: ${bytes:-unknown} bytes"
    # A file that came whole before it got its name would be asked for from its end on.
    if ! [ -f "$part" ] || [ "$(wc -c < "$part" | tr -d ' ')" != "$bytes" ]; then
        curl --fail --location --retry 5 --continue-at - --output "$part" "$1" || fail "$1 was interrupted; try again"
    fi
    if [ -n "${3:-}" ] && [ "$(sha256 "$part")" != "$3" ]; then
        rm "$part"
        fail "$1 is not the file that was published, by its SHA-256, and is deleted; try again"
    fi
    mv "$part" "$2"
}

sha256() {
    python -c 'import hashlib, sys
with open(sys.argv[1], "rb") as f:
    print(hashlib.file_digest(f, "sha256").hexdigest())' "$1"
}

members() {  # members ARCHIVE NAME ...: these files of a zip archive, beside it, and without it
    python -c 'import os, shutil, sys, zipfile
archive, *names = sys.argv[1:]
with zipfile.ZipFile(archive) as z:
    for name in names:
        path = os.path.join(os.path.dirname(archive), os.path.basename(name))
        with z.open(name) as source, open(path + ".part", "wb") as file:
            shutil.copyfileobj(source, file)
        os.replace(path + ".part", path)
os.remove(archive)' "$@"
}

muse() {
    local language
    for language in "$@"; do
        fetch "$MUSE/en-$language.txt" "dictionaries/en-$language.txt"
    done
}

culturax() {  # culturax LANGUAGE NUMBER
    local i file option
    if [ -d "texts/$1_published" ]; then
        echo "texts/$1 was made of texts/$1_published, and is left as it is"
        return
    fi
    command -v hf > /dev/null || fail "there is no hf: pip install huggingface_hub, then hf auth login"
    # First how large they are, then the files.
    for option in --dry-run ""; do
        for ((i = 0; i < $2; i++)); do
            file=$1/$1_part_$(printf %05d "$i").parquet
            # shellcheck disable=SC2086
            hf download "$CULTURAX" "$file" --repo-type=dataset --local-dir=texts $option
        done
    done
}

xnli() {
    [ -f nli/xnli.test.tsv ] || {
        fetch "$XNLI/XNLI-1.0.zip" nli/XNLI-1.0.zip "$XNLI_SHA256"
        members nli/XNLI-1.0.zip XNLI-1.0/xnli.dev.tsv XNLI-1.0/xnli.test.tsv
    }
    [ -f nli/multinli_1.0_train.jsonl ] || {
        fetch "$MULTINLI/multinli_1.0.zip" nli/multinli_1.0.zip "$MULTINLI_SHA256"
        members nli/multinli_1.0.zip multinli_1.0/multinli_1.0_train.jsonl
    }
}

pawsx() {
    [ -d nli/x-final ] || {
        fetch "$PAWSX/x-final.tar.gz" nli/x-final.tar.gz
        # The folder has its name when all is in it.
        mkdir -p nli/unpacking
        tar -xzf nli/x-final.tar.gz -C nli/unpacking
        mv nli/unpacking/x-final nli/x-final
        rm -r nli/unpacking nli/x-final.tar.gz
    }
}

simplified() {  # texts/zh becomes a file of JSON lines; the files as published are then in texts/zh_published
    python - <<'PYTHON'
import json
import os

from corpus.readers import documents
from runtime.files import replacing, write_text

try:
    from opencc import OpenCC
except ImportError:
    raise SystemExit("error: pip install opencc")
convert = OpenCC("t2s").convert
dictionary, text, published = "dictionaries/en-zh.txt", "texts/zh", "texts/zh_published"
if os.path.exists(dictionary):
    with open(dictionary, encoding="utf-8") as f:
        write_text(dictionary, "".join(dict.fromkeys(map(convert, f))))
if os.path.isdir(text) and not os.path.isdir(published):
    with replacing("texts/zh.jsonl") as f:
        for document in documents(text, "simplified"):
            f.write(json.dumps({"text": convert(document)}, ensure_ascii=False).encode() + b"\n")
    os.rename(text, published)
if os.path.exists("texts/zh.jsonl"):
    os.makedirs(text, exist_ok=True)
    os.rename("texts/zh.jsonl", f"{text}/zh.jsonl")
PYTHON
}

case ${1:-} in
    culturax) [[ $# = 3 && $3 =~ ^[1-9][0-9]*$ ]] || fail "expected culturax LANGUAGE NUMBER, as culturax en 12" ;;
    muse) [ $# -gt 1 ] || fail "expected languages, as muse de zh ru ar" ;;
    simplified | xnli | pawsx) ;;
    # As many files of CulturaX as have the tokens that the config reads.
    small | paper | table6_small | table6_paper)
        if [[ $1 = *paper ]]; then culturax en 12; else culturax en 1; fi
        if [[ $1 = table6* ]]; then
            muse de zh ru ar
            for language in de zh ru ar; do
                culturax "$language" 1
            done
        fi
        xnli
        exit
        ;;
    *) fail "expected a scale (small, paper, table6_small, table6_paper), culturax, muse, simplified, xnli or pawsx" ;;
esac
"$@"
