"""
Damaged files: whatever is in a file that a user brings, it is read or refused in one line.

    python tests/fuzz.py                        # 2,000 damaged copies of a file of each format
    python tests/fuzz.py --count=100 xnli gz    # fewer, of these

Exit code 1 when a reader raises anything but a UserError of one line, or takes more than ten seconds; such files are
kept. A checkpoint, which has checksums, must also say what the undamaged one says.
"""

import argparse
import contextlib
import gzip
import io
import json
import lzma
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from corpus import dictionary, readers
from model import GPT
from runtime import checkpoint, gpt2
from runtime import config as configs
from runtime.errors import UserError
from tasks import nli
from tools import translate

SECONDS = 10
PIECES = [b"", b"\n", b"\t", b"\0", b'"', b"{", b"}", b"[]", b"null", b"-1", b"NaN", b"1e999", 20 * b"9", b"\xff\xfe",
          b"\xed\xa0\x80", b"\r\n\r\n", 9999 * b"["]
TEXT = 'The old house by the river had a door.\n\nHe said: "The small door?" She did not.\n\n' * 12
JSONL = "".join(json.dumps({"text": text}) + "\n" for text in TEXT.split("\n\n"))
XNLI = "language\tgold_label\tsentence1\tsentence2\nen\tneutral\tA man walks.\tHe is tall.\nde\tentailment\tEr.\tEr.\n"
SNLI = "".join(json.dumps({"gold_label": label, "sentence1": f"A man {verb}.", "sentence2": "A man moves."}) + "\n"
               for label, verb in (("entailment", "walks"), ("contradiction", "sleeps"), ("neutral", "waits")))
TABLE = '1\t20\t" house"\tclone\t" house"\n1\t20\t" house"\tde\t" Haus"\n2\t9\t"door"\tde\t"Tür"\n'
ANSWERS = "".join(json.dumps({"word": word, "language": "de", "model": "m", "k": 5, "translations": texts}) + "\n"
                  for word, texts in {"house": ["Haus", "Heim"], "door": ["Tür"]}.items())


class Format(NamedTuple):
    file: str
    whole: bytes
    read: Callable[[str], object]


def formats(folder: str) -> dict[str, Format]:
    """Of every format a file's name, what an undamaged one holds, and what reads it."""
    def add(name: str, file: str, whole: str | bytes, read: Callable[[str], object]) -> None:
        found[name] = Format(file, whole if isinstance(whole, bytes) else whole.encode(), read)

    def texts(path: str) -> object:
        return list(readers.documents(path))

    def gpt2_in(path: str) -> object:
        return gpt2.load_gpt2(model, os.path.dirname(path), 50)

    def weights_in(path: str) -> object:
        return {name: value.tolist() for name, value in checkpoint.load_checkpoint(path)["model"].items()}

    found: dict[str, Format] = {}
    model, languages = GPT(50, 8, 1, 1, 16), configs.Config(targets=("clone", "de"))
    torch.save(gpt2.gpt2_weights(model), weights := io.BytesIO())
    torch.save(dict.fromkeys(checkpoint.FIELDS, 0) | {"model": model.state_dict()}, state := io.BytesIO())
    add("txt", "a.txt", TEXT, texts)
    add("jsonl", "a.jsonl", JSONL, texts)
    add("gz", "a.jsonl.gz", gzip.compress(JSONL.encode()), texts)
    add("xz", "a.jsonl.xz", lzma.compress(JSONL.encode()), texts)
    with contextlib.suppress(ImportError):
        from backports import zstd
        add("zst", "a.jsonl.zst", zstd.compress(JSONL.encode()), texts)
    with contextlib.suppress(ImportError):
        import pyarrow.parquet
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXT.split("\n\n")}), table := io.BytesIO())
        add("parquet", "a.parquet", table.getvalue(), texts)
    add("config", "a.py", 'max_steps = 700\nmix = {"en": 0.9, "clone": 0.1}\n', lambda path: configs.load([path]))
    add("dictionary", "en-de.txt", "house\tHaus\nold alt\nriver\tFluss\n", dictionary.read)
    add("table", "table.tsv", TABLE, lambda path: dictionary.read_table_tsv(path, languages))
    add("xnli", "xnli.tsv", XNLI, nli.read)
    add("snli", "snli.jsonl", SNLI, nli.read)
    add("answers", "answers.jsonl", ANSWERS, lambda path: translate.read_answers(path, 5))
    add("checkpoint", "checkpoint.pt", state.getvalue(), weights_in)
    add("hf_config", "hf_config/config.json", json.dumps(gpt2.gpt2_config(model)), gpt2_in)
    add("hf_weights", "hf_weights/pytorch_model.bin", weights.getvalue(), gpt2_in)
    for name, other in (("hf_config", "hf_weights"), ("hf_weights", "hf_config")):
        os.makedirs(f"{folder}/{name}")
        Path(folder, name, os.path.basename(found[other].file)).write_bytes(found[other].whole)
    return found


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: a bit, a range of bytes that is cut, doubled or random, a piece that means something."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        a, b = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        b = rng.choice((b, min(len(data), a + rng.randrange(1, 16))))
        middle = rng.choice((b"", rng.randbytes(b - a), bytes(b - a), 9 * data[a:b], rng.choice(PIECES), data[a:b]))
        data = data[:a] + middle + rng.choice((data[b:], data[b:], data[b:], b""))
    return data


class TooLong(BaseException):
    """No Exception, as a reader might catch it."""


def outcome(form: Format, path: Path, undamaged: object) -> str:
    """"read", "refused", or what else happened."""
    def too_long(*_: object) -> None:
        raise TooLong(f"more than {SECONDS} seconds")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(None):
            result = form.read(str(path))
        return "read as another" if path.name == "checkpoint.pt" and result != undamaged else "read"
    except UserError as e:
        return "refused" if "\n" not in str(e) else f"not one line: {str(e)!r}"
    except (Exception, TooLong) as e:
        return f"{type(e).__name__}: {e}"
    finally:
        signal.alarm(0)


def fuzz(form: Format, name: str, folder: str, count: int, seed: int = 0) -> Counter:
    """How often each outcome came; a file with another than "read" and "refused" is kept in `folder`."""
    outcomes, path = Counter(), Path(folder, form.file)
    path.write_bytes(form.whole)
    undamaged = form.read(str(path))
    for case in tqdm(range(count), desc=name, disable=None):
        path.write_bytes(damaged(form.whole, random.Random(f"{seed} {name} {case}")))
        outcomes[result := outcome(form, path, undamaged)] += 1
        if result not in ("read", "refused"):
            shutil.copy(path, f"{folder}/{name}.{case}")
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="damaged copies of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("names", nargs="*", help="formats; all when none is named")
    arguments = parser.parse_args()
    folder, bad = tempfile.mkdtemp(prefix="fuzz-"), 0
    everything = formats(folder)
    for name in arguments.names or everything:
        outcomes = fuzz(everything[name], name, folder, arguments.count, arguments.seed)
        print(f"{name:<12}" + ", ".join(f"{n} {what[:150]}" for what, n in outcomes.most_common()))
        bad += outcomes.total() - outcomes["read"] - outcomes["refused"]
    if bad:
        sys.exit(f"{bad} neither read nor refused are in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
