"""
Damaged files: whatever is in a file that we read, it is read rightly or refused in one line.

    python tests/fuzz.py                        # 2,000 damaged copies of a file of each format; exit code 1 if any was not
    python tests/fuzz.py --count=100 table nli  # fewer, of these

A copy is "read" when our own reading function returns what it should (for files that have a digest or a checksum: exactly what the
undamaged file says), "refused" when it raises UserError with a message of one line, and "unclassified" when anything else happens:
another exception, another result, more than ten seconds, or the end of the process. Those are kept in a folder that is named.
"""

import argparse
import gzip
import io
import json
import lzma
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from tqdm import tqdm

from runtime import config as configs
from corpus import readers as corpus
from corpus import dictionary
from runtime import gpt2 as huggingface
from tasks import nli
from report.results import dynamics_in, runs_in
from report.tables import dynamics_table, report_tables
import train as training
from tools import translate
from data import Sampler
from runtime.checkpoint import FIXED, check_matches, check_shape, load_checkpoint, load_weights, make_model
from runtime.config import Config
from runtime.errors import UserError
from tasks.facts import facts_of
from data import prepare
from corpus.folder import Folder, digest_of
from runtime.files import remembered
from runtime.hardware import start
from corpus.table import Table
from corpus.tokenizer import encode, load_tokenizer

SECONDS = 10
FORMATS = ("bin", "align", "meta", "meta_resealed", "table", "table_resealed", "tokenizer", "tokenizer_alone", "table_tsv", "checkpoint", "checkpoint_resealed",
           "config", "dictionary", "xnli", "snli", "sick", "txt", "jsonl", "gz", "xz", "zst", "parquet", "answers", "eval", "eval_values", "xnli_result", "metrics", "work",
           "dynamics", "hf_config",
           "hf_config_values", "hf_weights", "hf_weights_values")
PIECES = [b"", b"\n", b"\t", b"\0", b'"', b"{", b"}", b"[]", b"null", b"-1", b"0", b"NaN", b"1e999", b"99999999999999999999", b"\xff\xfe", b"\xed\xa0\x80", b"\r\n\r\n", b" "]


@dataclass(frozen=True)
class Format:
    file: Path                       # an undamaged one
    read: Callable[[Path], object]   # reads it in the folder that it stands in, and checks what can be checked
    guarded: bool = False            # a digest or checksum says whether it is as it was written
    damage: Callable[[bytes, random.Random], bytes] | None = None  # another way to damage it than `damaged`


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: bits, bytes, ranges, lengths, and pieces that mean something in some format."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        a, b = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        near = min(len(data), a + rng.randrange(1, 16))
        piece = rng.choice(PIECES)
        kind = rng.randrange(10)
        if kind == 0 and data:
            at = rng.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1:]
        elif kind == 1:
            data = data[:a] + rng.randbytes(near - a) + data[near:]
        elif kind == 2:
            data = data[:a] + data[near:]
        elif kind == 3:
            data = data[:a] + data[b:]
        elif kind == 4:
            data = data[:a]
        elif kind == 5:
            data = data[:a] + piece + data[a:]
        elif kind == 6:
            data = data[:a] + piece + data[near:]
        elif kind == 7:
            data = data[:a] + data[a:near] * rng.randrange(2, 50) + data[near:]
        elif kind == 8:
            data = data[:a] + bytes(near - a) + data[near:]
        else:
            data = data + rng.randbytes(rng.randrange(1, 50)) if rng.random() < 0.8 else rng.randbytes(rng.randrange(200))
    return data


VALUES = [None, True, -1, 0, 1, 7, 2**40, 2**70, -0.5, 1e300, float("nan"), float("inf"), "", "x", "../x", "O", [], [1], {}, {"x": 1}]


def changed(value: object, rng: random.Random) -> object:
    """A copy of what JSON or a checkpoint holds with one of its parts, however deep, replaced, left out or doubled."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key, kind, copy = rng.choice(list(keys)), rng.random(), value.copy()
        if kind < 0.1:
            del copy[key]
        elif kind < 0.15 and isinstance(copy, list):
            copy.append(copy[key])
        else:
            copy[key] = changed(value[key], rng)
        return copy
    if isinstance(value, torch.Tensor) and rng.random() < 0.8:
        return rng.choice([lambda: value[..., :1] if value.dim() else value[None, None], lambda: value.flatten(), lambda: value.double(), lambda: value.to(torch.int8),
                           lambda: value * float("nan"), lambda: value[None], lambda: value.new_zeros(()), lambda: value.new_zeros(0)])()
    if isinstance(value, np.ndarray) and value.dtype.kind == "U":
        return rng.choice([lambda: value[:-1], lambda: value[::-1], lambda: value[None], lambda: value[:0], lambda: np.append(value, "x"), lambda: np.arange(len(value))])()
    if isinstance(value, np.ndarray):
        return rng.choice([lambda: value[:-1], lambda: value[::-1], lambda: value - 1, lambda: value + 2**20, lambda: value.astype(np.float32), lambda: value[None],
                           lambda: value[:0], lambda: np.append(value, value[-1:]), lambda: value.astype("U8"), lambda: value.astype(np.int64) * 2**33,
                           lambda: value.astype(np.int8)])()
    return rng.choice(VALUES)


def changed_json(data: bytes, rng: random.Random) -> bytes:
    return json.dumps(changed(json.loads(data), rng)).encode()


def resealed_meta(data: bytes, rng: random.Random) -> bytes:
    """With the digest of what it now says, as somebody who makes such a file would write it."""
    meta = changed(json.loads(data), rng)
    return json.dumps(meta | {"digest": digest_of(meta)} if isinstance(meta, dict) else meta).encode()


def resealed_checkpoint(data: bytes, rng: random.Random) -> bytes:
    file = io.BytesIO()
    torch.save(changed(torch.load(io.BytesIO(data), weights_only=True), rng), file)
    return file.getvalue()


def resealed_table(data: bytes, rng: random.Random) -> bytes:
    with np.load(io.BytesIO(data)) as arrays:
        found = changed({name: arrays[name] for name in arrays}, rng)
    file = io.BytesIO()
    np.savez(file, **(found if isinstance(found, dict) else {}))
    return file.getvalue()


# ---- the formats ----

TEXT = ("The old house by the river had a door, and the door had a name. It's 1234 or so.\n\nHe said: \"The small door?\" "
        "She did not answer the old question.\n\nA name is a name; the river is the river.\n\n") * 12


def formats(folder: Path) -> dict[str, Format]:
    """An undamaged file of every format that we read, made in `folder` by our own code, or as others publish theirs."""
    def write(name: str, text: str | bytes) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    source = write("text/text.txt", TEXT)
    config = Config(data_dir=str(folder / "data"), out_dir=str(folder / "out"), source=str(source), vocab_size=300, min_count=3, val_fraction=0.2, workers=1,
                    fact_count=4, fact_frequencies=(2,), mix={"en": 0.75, "clone": 0.25}, batch_size=4, micro_batch_size=4, block_size=64, n_layer=1, n_head=1,
                    n_embd=16, max_steps=24, stage1_steps=2, align_entries=4, device="cpu", dtype="fp32", eval_words=20, sample_count=2, eval_tokens=200)
    prepare(config)
    training.StopSignal = lambda: type("Never", (), {"asked": False})()
    training.matmul_rate = lambda hardware: 1e9
    training.train(replace(config, snapshot_interval=12), 0, 24)
    import eval as evaluation

    evaluation.evaluate(config)
    evaluation.dynamics(config)
    data = Folder(config.data_dir)
    model = make_model(config, data.vocab_size)
    run_dir = Path(config.run_dir)
    hf = folder / "hf"
    hf.mkdir()
    torch.save(huggingface.gpt2_weights(model), hf / "pytorch_model.bin")
    (hf / "config.json").write_text(json.dumps(huggingface.gpt2_config(model, 0)))

    def read_table(path: Path) -> object:
        """Every word of every entry can be taken from it."""
        table = Table.load(str(path))
        return [table.word(w).tolist() for entry in range(len(table)) for l in range(len(table.languages)) for w in table.words(entry, l)]

    def words_of(book: dictionary.Dictionary) -> object:
        assert book.entries and all(word and those and all(those) for word, those in book.entries.items())
        return book

    def read_corpus(path: Path) -> list[str]:
        texts = list(corpus.documents(str(path)))
        assert texts and all(text and "\n\n" not in text for text in texts)
        return texts

    def read_pairs(path: Path) -> object:
        pairs, labels = nli.read(str(path), None)
        assert pairs and all(0 <= pair.label < len(labels) and isinstance(pair.premise, str) for pair in pairs)
        return pairs

    def read_tokenizer(path: Path) -> object:
        encoding = load_tokenizer("train", str(path))
        for text in ("The old house", "naïve 日本\n"):
            assert encoding.decode(encode(encoding, text).tolist()) == text
        return None

    def read_checkpoint(path: Path) -> object:
        state = load_checkpoint(str(path))
        configs.from_plain(state["config"], str(path))
        load_weights(model, state, str(path))
        return [(name, value.tolist()) for name, value in model.state_dict().items()], state["step"], state["tokens"]

    def resume(path: Path) -> object:
        """As train.py goes on from it."""
        state = load_checkpoint(str(path))
        check_shape(state, configs.from_plain(state["config"], str(path)), str(path))
        check_matches(state, str(path), config, data, FIXED)
        load_weights(model, state, str(path))
        training.restore(training.set_up(config, start(config), data, make_model(config, data.vocab_size)), state, str(path))
        return None

    def read_everything(d: Folder) -> object:
        """All that is in a data folder, as far as meta.json says what."""
        Sampler(d, config).batch(np.arange(8))
        assert all(len(text) < 1e7 for text in (d.tokens(language, split) for split, those in d.splits.items() for language in those))
        return d.table, d.align("train"), encode(d.encoding, TEXT), facts_of(d.settings)

    def read_cache(path: Path) -> object:
        known = translate.Cache(str(path), "de", 5).known
        assert all(isinstance(word, str) and those and all(isinstance(t, str) and t for t in those) for word, those in known.items())
        return known

    def read_report(path: Path) -> object:
        out = path.parents[2]
        with redirect_stdout(io.StringIO()):
            return report_tables(runs_in(str(out), report_tables), dynamics_in(str(out), dynamics_table))

    def read_metrics(path: Path) -> object:
        """As a run that goes on reads its own lines."""
        log = object.__new__(training.Log)
        log.metrics = str(path)
        log._drop_after(12)
        assert all(json.loads(line)["step"] <= 12 for line in path.read_text(encoding="utf-8").splitlines())
        return None

    def read_gpt2(path: Path) -> object:
        huggingface.load_gpt2(model, str(path.parent), data.V)
        return None

    def of_dataset(read: Callable[[Folder], object]) -> Callable[[Path], object]:
        return lambda path: read(Folder(str(path.parent)))

    snli = "".join(json.dumps({"gold_label": label, "sentence1": f"A man {verb}.", "sentence2": "A man moves."}) + "\n"
                   for label, verb in (("entailment", "walks"), ("contradiction", "sleeps"), ("neutral", "waits")))
    jsonl = "".join(json.dumps({"text": text, "url": "x"}) + "\n" for text in TEXT.split("\n\n") if text)
    answers = "".join(json.dumps({"word": word, "language": "de", "model": "m", "k": 5, "translations": those}) + "\n"
                      for word, those in {"house": ["Haus", "Heim"], "door": ["Tür"], "river": ["Fluss", "Strom"]}.items())
    transferred = {"config": config.plain(), "train": "builtin", "test": "builtin", "pairs": 8, "labels": ["a", "b", "c"], "dev": [[0.5]], "languages": {
        "en": {"accuracies": [0.5, 0.6], "n": 20}, "clone": {"accuracies": [0.4], "n": 20}}}
    found_before = folder / "counts.json"
    remembered(str(found_before), lambda: {"house": 12, "door": 3, " the": 40})
    table_config = replace(config, targets=("clone", "de"))
    found = {
        "bin": Format(folder / "data/en_train.bin", of_dataset(lambda d: d.tokens("en", "train").tolist()), True),
        "align": Format(folder / "data/en_train.align.bin", of_dataset(lambda d: d.align("train").tolist()), True),
        "meta": Format(folder / "data/meta.json", of_dataset(lambda d: (d.V, d.vocab_size, d.end_of_text, d.offsets, d.splits, str(d.dtype), d.fingerprint)), True),
        "table": Format(folder / "data/table.npz", of_dataset(lambda d: (d.table.tokens.tolist(), d.table.offsets.tolist(), d.table.groups.tolist())), True),
        "meta_resealed": Format(folder / "data/meta.json", of_dataset(read_everything), damage=resealed_meta),
        "table_resealed": Format(write("tables/table.npz", (folder / "data/table.npz").read_bytes()), read_table, damage=resealed_table),
        "checkpoint_resealed": Format(write("resealed/checkpoint.pt", (run_dir / "checkpoint.pt").read_bytes()), resume, damage=resealed_checkpoint),
        "eval_values": Format(run_dir / "eval.json", read_report, damage=changed_json),
        "hf_config_values": Format(hf / "config.json", read_gpt2, damage=changed_json),
        "hf_weights_values": Format(hf / "pytorch_model.bin", read_gpt2, damage=resealed_checkpoint),
        "tokenizer": Format(folder / "data/tokenizer.tiktoken", of_dataset(lambda d: encode(d.encoding, TEXT).tolist()), True),
        "tokenizer_alone": Format(write("alone/tokenizer.tiktoken", (folder / "data/tokenizer.tiktoken").read_bytes()), read_tokenizer),
        "table_tsv": Format(write("tables/table.tsv", (folder / "data/table.tsv").read_bytes()), lambda p: dictionary.read_table_tsv(str(p), table_config)),
        "checkpoint": Format(run_dir / "checkpoint.pt", read_checkpoint, True),
        "config": Format(write("config/mine.py", '"""Mine."""\n\nmax_steps = 700\nmix = {"en": 0.9, "clone": 0.1}\nlearning_rate = 1e-3\ntargets = ("clone",)\nsource = "x"\n'),
                         lambda p: configs.load([str(p)])),
        "dictionary": Format(write("dictionary/en-de.txt", "house\tHaus\nold alt\nold alte\nthe die\nNew York\tNew York\nriver\tFluss\n"),
                             lambda p: words_of(dictionary.read(str(p)))),
        "xnli": Format(write("nli/xnli.dev.tsv",
                             "language\tgold_label\tsentence1\tsentence2\nen\tneutral\tA man walks.\tHe is tall.\nde\tentailment\tEin Mann.\tEr ist.\n"), read_pairs),
        "snli": Format(write("nli/snli.jsonl", snli), read_pairs),
        "sick": Format(write("nli/sick.tsv", "premise\thypothesis\tlabel\nA man walks\tA man moves\tENTAILMENT\nA dog\tA cat\tNEUTRAL\n"), read_pairs),
        "txt": Format(source, read_corpus),
        "jsonl": Format(write("jsonl/text.jsonl", jsonl), read_corpus),
        "gz": Format(write("gz/text.jsonl.gz", gzip.compress(jsonl.encode())), read_corpus),
        "xz": Format(write("xz/text.txt.xz", lzma.compress(TEXT.encode())), read_corpus),
        "answers": Format(write("answers/en-de.txt.jsonl", answers), read_cache),
        "eval": Format(run_dir / "eval.json", read_report),
        "xnli_result": Format(write(str(run_dir / "xnli.json"), json.dumps(transferred)), read_report, damage=changed_json),
        "metrics": Format(run_dir / "metrics.jsonl", read_metrics),
        "work": Format(found_before, lambda p: remembered(str(p), dict), True),
        "dynamics": Format(run_dir / "dynamics.jsonl", read_report),
        "hf_config": Format(hf / "config.json", read_gpt2),
        "hf_weights": Format(hf / "pytorch_model.bin", read_gpt2),
    }
    try:
        import pyarrow
        import pyarrow.parquet

        (folder / "parquet").mkdir()
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXT.split("\n\n")}), folder / "parquet/text.parquet")
        found["parquet"] = Format(folder / "parquet/text.parquet", read_corpus)
    except ImportError:
        pass
    try:
        import zstandard

        found["zst"] = Format(write("zst/text.txt.zst", zstandard.compress(TEXT.encode())), read_corpus)
    except ImportError:
        pass
    return found


# ---- trying them ----

class TooLong(BaseException):
    """Not an Exception: nothing that we read with may catch it."""


def too_long(*_) -> None:
    raise TooLong


def outcome(form: Format, data: bytes, undamaged: object) -> tuple[str, str]:
    """("read" | "refused" | "unclassified", what happened) for a file with this content."""
    form.file.write_bytes(data)
    os.utime(form.file)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = form.read(form.file)
        if form.guarded and result != undamaged:
            return "unclassified", "a damaged file was read as something else than the undamaged one"
        return "read", ""
    except UserError as e:
        message = str(e)
        return ("refused", message) if message and "\n" not in message else ("unclassified", f"not one line: {message!r}")
    except TooLong:
        return "unclassified", f"more than {SECONDS} seconds"
    except BaseException:
        return "unclassified", traceback.format_exc()
    finally:
        signal.alarm(0)


def attempt(form: Format, name: str, seed: int, first: int, count: int, results) -> None:
    """In a process of its own: cases first..count - 1, each sent before it is tried and after."""
    signal.signal(signal.SIGALRM, too_long)
    torch.set_num_threads(1)
    whole = form.file.read_bytes()
    undamaged = form.read(form.file)
    for case in range(first, count):
        data = (form.damage or damaged)(whole, random.Random(f"{seed} {name} {case}"))
        results.send((case, data, None, ""))
        results.send((case, data, *outcome(form, data, undamaged)))
    results.send(None)


def fuzz(form: Format, name: str, count: int, seed: int = 0) -> tuple[Counter, list[tuple[int, bytes, str]]]:
    """How many of `count` damaged copies were read, refused and unclassified; and the unclassified ones: case, content, what happened."""
    context, counts, unclassified = multiprocessing.get_context("fork"), Counter(), []
    whole, first = form.file.read_bytes(), 0
    with tqdm(total=count, desc=name, disable=None) as bar:
        while first < count:
            form.file.write_bytes(whole)
            receive, send = context.Pipe(duplex=False)
            process = context.Process(target=attempt, args=(form, name, seed, first, count, send))
            process.start()
            send.close()
            under_way = None
            try:
                while (message := receive.recv()) is not None:
                    case, data, kind, what = message
                    under_way = (case, data) if kind is None else None
                    if kind is not None:
                        counts[kind] += 1
                        first = case + 1
                        bar.update()
                        if kind == "unclassified":
                            unclassified.append((case, data, what))
            except EOFError:
                pass
            process.join()
            if under_way is not None:  # it ended the process
                counts["unclassified"] += 1
                unclassified.append((*under_way, f"the process ended with exit code {process.exitcode}"))
                first = under_way[0] + 1
            elif process.exitcode:
                raise RuntimeError(f"{name}: the undamaged file cannot be read")
    form.file.write_bytes(whole)
    return counts, unclassified


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="damaged copies of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("names", nargs="*", help="formats; all when none is named")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with redirect_stdout(io.StringIO()):
            everything = formats(Path(folder))
        if unknown := set(arguments.names) - set(everything):
            parser.error(f"there are {', '.join(everything)}; found {', '.join(unknown)}")
        kept, failed = Path(tempfile.gettempdir(), f"fuzz-{os.getpid()}"), 0
        print(f"{'format':<16} {'read':>6} {'refused':>8} {'unclassified':>13}")
        for name in arguments.names or everything:
            counts, unclassified = fuzz(everything[name], name, arguments.count, arguments.seed)
            print(f"{name:<16} {counts['read']:>6} {counts['refused']:>8} {counts['unclassified']:>13}")
            for case, data, what in unclassified:
                kept.mkdir(exist_ok=True)
                (kept / f"{name}.{case}").write_bytes(data)
                (kept / f"{name}.{case}.why").write_text(what)
            for last in Counter(what.strip().splitlines()[-1] for _, _, what in unclassified):
                print(f"    {last[:200]}")
            failed += len(unclassified)
    if failed:
        print(f"the unclassified ones are in {kept}")
    else:
        shutil.rmtree(kept, ignore_errors=True)
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
