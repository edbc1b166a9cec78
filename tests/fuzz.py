"""
Damaged files: whatever is in a file that a user brings, it is read or refused in one line.

    python tests/fuzz.py        # 2,000 damaged copies of a file of each format

Ends with the traceback of the first reader that raises anything but a UserError of one line that names the file, its
folder or a knob. A file that has checksums must also say what the undamaged one says.
"""

import contextlib
import json
import random
import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

from conftest import PACK, make_text, write
from corpus import dictionary, readers
from corpus.table import read_table_tsv
from model import GPT
from runtime import checkpoint, gpt2
from runtime import config as configs
from runtime.errors import UserError
from tasks import nli

PIECES = [b"\n", b"\t", b"\0", b'"', b"{", b"null", b"NaN", b"1e999", 20 * b"9", b"\xff", b"\xed\xa0\x80", 9999 * b"["]
TEXTS = make_text().split("\n\n")
JSONL = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
MODEL = GPT(50, 8, 1, 1, 16)
texts = lambda path: list(readers.documents(path))
weights = lambda path: {name: value.tolist() for name, value in checkpoint.load_checkpoint(path)["model"].items()}
pretrained = lambda path: gpt2.load_gpt2(MODEL, str(Path(path).parent), 50)
# A file of each format: what reads it, and its text where no library writes it.
FORMATS = {"a.txt": (texts, "\n\n".join(TEXTS)), **{f"a.jsonl{packed}": (texts, JSONL) for packed in PACK},
    "a.parquet": (texts, ""),
    "knobs.py": (lambda path: configs.load([path]), 'max_steps = 700\nmix = {"en": 0.9, "clone": 0.1}\n'),
    "en-de.txt": (dictionary.read, "house\tHaus\nold alt\nriver\tFluss\n"),
    "table.tsv": (lambda path: read_table_tsv(path, ("clone", "de")),
                  '1\t20\t" house"\tclone\t" house"\n1\t20\t" house"\tde\t" Haus"\n2\t9\t"door"\tde\t"Tür"\n'),
    "xnli.tsv": (nli.read, "language\tgold_label\tsentence1\tsentence2\nen\tneutral\tA man walks.\tHe is tall.\n"),
    "snli.jsonl": (nli.read, '{"gold_label": "neutral", "sentence1": "A man walks.", "sentence2": "He is tall."}\n'),
    "checkpoint.pt": (weights, ""), "pytorch_model.bin": (pretrained, ""),
    "config.json": (pretrained, json.dumps(gpt2.gpt2_config(MODEL)))}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to four times a range of bytes is cut, zeroed, random, repeated or a piece, and perhaps ends the file."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        a, b = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        b = rng.choice((b, min(len(data), a + rng.randrange(1, 16))))
        middle = rng.choice((b"", rng.randbytes(b - a), bytes(b - a), 9 * data[a:b], rng.choice(PIECES), data[a:b]))
        data = data[:a] + middle + rng.choice((data[b:], data[b:], data[b:], b""))
    return data


def fuzz(folder: Path, count: int) -> None:
    """Reads `count` damaged files of each format, and prints how many were refused."""
    import pyarrow.parquet
    for name, (_, text) in FORMATS.items():
        write(folder / name, text)
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), folder / "a.parquet")
    torch.save(dict.fromkeys(checkpoint.STATE, 0) | {"model": MODEL.state_dict()}, folder / "checkpoint.pt")
    torch.save(gpt2.gpt2_weights(MODEL), folder / "pytorch_model.bin")
    for name, (read, _) in FORMATS.items():
        path, refused = folder / name, 0
        whole, undamaged = path.read_bytes(), read(str(path))
        for case in tqdm(range(count), desc=str(path), disable=None):
            path.write_bytes(damaged(whole, random.Random(f"{name} {case}")))
            try:
                with contextlib.redirect_stdout(None):
                    result = read(str(path))
                assert path.suffix not in (".gz", ".xz", ".zst", ".pt") or result == undamaged
            except UserError as e:
                assert "\n" not in str(e) and (str(folder) in str(e) or name == "knobs.py"), e
                refused += 1
        path.write_bytes(whole)
        print(f"{name}: {refused} of {count} are refused")
        assert refused


if __name__ == "__main__":
    fuzz(Path(tempfile.mkdtemp(prefix="fuzz-")), 2000)
