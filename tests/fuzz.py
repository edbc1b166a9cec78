"""
Damaged files: whatever is in a file that a user brings, it is read or refused in one line.

    python tests/fuzz.py        # 2,000 damaged copies of a file of each format

Ends with the traceback of the first reader that raises anything but a UserError of one line; its file is kept. A
checkpoint, which has checksums, must also say what the undamaged one says.
"""

import contextlib
import gzip
import io
import json
import lzma
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from corpus import dictionary, readers
from corpus.table import read_table_tsv
from model import GPT
from runtime import checkpoint, gpt2
from runtime import config as configs
from runtime.errors import UserError
from tasks import nli

PIECES = [b"", b"\n", b"\t", b"\0", b'"', b"{", b"}", b"[]", b"null", b"-1", b"NaN", b"1e999", 20 * b"9", b"\xff\xfe",
          b"\xed\xa0\x80", b"\r\n\r\n", 9999 * b"["]
TEXT = 'The old house by the river had a door.\n\nHe said: "The small door?" She did not.\n\n' * 12
JSONL = "".join(json.dumps({"text": text}) + "\n" for text in TEXT.split("\n\n")).encode()
XNLI = "language\tgold_label\tsentence1\tsentence2\nen\tneutral\tA man walks.\tHe is tall.\nde\tentailment\tEr.\tEr.\n"
SNLI = "".join(json.dumps({"gold_label": label, "sentence1": f"A man {verb}.", "sentence2": "A man moves."}) + "\n"
               for label, verb in (("entailment", "walks"), ("contradiction", "sleeps"), ("neutral", "waits")))
TABLE = '1\t20\t" house"\tclone\t" house"\n1\t20\t" house"\tde\t" Haus"\n2\t9\t"door"\tde\t"Tür"\n'

# A file's name, what an undamaged one holds, what reads it.
Format = tuple[str, bytes, Callable[[str], object]]


def formats() -> dict[str, Format]:
    import pyarrow.parquet
    from backports import zstd
    model = GPT(50, 8, 1, 1, 16)
    torch.save(gpt2.gpt2_weights(model), weights := io.BytesIO())
    torch.save(dict.fromkeys(checkpoint.STATE, 0) | {"model": model.state_dict()}, state := io.BytesIO())
    shape = json.dumps(gpt2.gpt2_config(model)).encode()

    def texts(path: str) -> list:
        return list(readers.documents(path))

    def gpt2_in(path: str) -> object:
        # The other file of the folder is whole.
        other, whole = ("config.json", shape) if path.endswith(".bin") else ("pytorch_model.bin", weights.getvalue())
        Path(path).with_name(other).write_bytes(whole)
        return gpt2.load_gpt2(model, os.path.dirname(path), 50)

    def weights_in(path: str) -> dict:
        return {name: value.tolist() for name, value in checkpoint.load_checkpoint(path)["model"].items()}

    pyarrow.parquet.write_table(pyarrow.table({"text": TEXT.split("\n\n")}), table := io.BytesIO())
    return {
        "txt": ("a.txt", TEXT.encode(), texts), "jsonl": ("a.jsonl", JSONL, texts),
        "gz": ("a.jsonl.gz", gzip.compress(JSONL), texts), "xz": ("a.jsonl.xz", lzma.compress(JSONL), texts),
        "zst": ("a.jsonl.zst", zstd.compress(JSONL), texts), "parquet": ("a.parquet", table.getvalue(), texts),
        "config": ("a.py", b'max_steps = 700\nmix = {"en": 0.9, "clone": 0.1}\n', lambda path: configs.load([path])),
        "dictionary": ("en-de.txt", b"house\tHaus\nold alt\nriver\tFluss\n", dictionary.read),
        "table": ("table.tsv", TABLE.encode(), lambda path: read_table_tsv(path, ("clone", "de"))),
        "xnli": ("xnli.tsv", XNLI.encode(), nli.read), "snli": ("snli.jsonl", SNLI.encode(), nli.read),
        "checkpoint": ("checkpoint.pt", state.getvalue(), weights_in),
        "hf_config": ("config.json", shape, gpt2_in), "hf_weights": ("pytorch_model.bin", weights.getvalue(), gpt2_in)}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: a bit, a range of bytes that is cut, doubled or random, a piece that means something."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        a, b = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        b = rng.choice((b, min(len(data), a + rng.randrange(1, 16))))
        middle = rng.choice((b"", rng.randbytes(b - a), bytes(b - a), 9 * data[a:b], rng.choice(PIECES), data[a:b]))
        data = data[:a] + middle + rng.choice((data[b:], data[b:], data[b:], b""))
    return data


def fuzz(form: Format, name: str, folder: str, count: int, seed: int = 0) -> Counter:
    """How many damaged files were "read" and "refused". The last one stays in `folder`."""
    (file, whole, read), outcomes = form, Counter()
    path = os.path.join(folder, file)
    Path(path).write_bytes(whole)
    undamaged = read(path)
    for case in tqdm(range(count), desc=name, disable=None):
        Path(path).write_bytes(damaged(whole, random.Random(f"{seed} {name} {case}")))
        try:
            with contextlib.redirect_stdout(None):
                result = read(path)
            assert name != "checkpoint" or result == undamaged, f"{path} is read as another"
            outcomes["read"] += 1
        except UserError as e:
            assert "\n" not in str(e), e
            outcomes["refused"] += 1
    return outcomes


if __name__ == "__main__":
    folder = tempfile.mkdtemp(prefix="fuzz-")
    print(f"files are in {folder}")
    for name, form in formats().items():
        print(name, dict(fuzz(form, name, folder, 2000)))
    shutil.rmtree(folder)
