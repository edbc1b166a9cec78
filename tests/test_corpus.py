"""Readers, their errors, and the cleaning that turns docstrings into prose."""

import gzip
import hashlib
import json
import logging
import lzma
import os
import re
import sys
import textwrap

import pytest

from corpus import readers as corpus
from runtime.errors import UserError
from corpus import builtin
from corpus.builtin import harvest, prose
from corpus.readers import documents, fingerprint

PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


def write(path, content: bytes | str):
    """`content` at `path`, compressed as the name asks; bytes go in as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else PACK[path.suffix if path.suffix in PACK else ""](content.encode()))
    return str(path)


def rows(*texts: str) -> str:
    return "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts)


def error(source) -> str:
    with pytest.raises(UserError) as e:
        list(documents(str(source)))
    assert "\n" not in str(e.value)
    return str(e.value)


# ---- files ----

@pytest.mark.parametrize("packed", PACK)
def test_both_formats_make_the_same_documents(tmp_path, packed):
    expected = ["One line.\n  And its second.", "Two."]
    txt = write(tmp_path / f"a.txt{packed}", "\n\nOne line.  \n  And its second.\n \t\n\n\nTwo.")
    jsonl = write(tmp_path / f"a.jsonl{packed}", rows("One line.\n\n\n  And its second.\n", " \n", "Two.  "))
    assert list(documents(txt)) == list(documents(jsonl)) == expected


def test_windows_line_ends_byte_order_mark_and_nfc(tmp_path):
    txt = write(tmp_path / "a.txt", "\ufeffCafe\u0301\r\nau lait\r\n\r\n\ufeffnext\r\n".encode())
    jsonl = write(tmp_path / "a.jsonl", ("\ufeff" + rows("Cafe\u0301\r\n\r\nau lait")).encode())
    assert list(documents(txt)) == ["Caf\u00e9\nau lait", "\ufeffnext"]  # a mark is one at the start of a file only
    assert list(documents(jsonl)) == ["Caf\u00e9\nau lait"]


def test_only_a_newline_ends_a_line(tmp_path):
    assert list(documents(write(tmp_path / "a.txt", "one\u2028two\x85three\n"))) == ["one\u2028two\x85three"]


def test_folder_is_read_in_order_and_deeply_without_hidden_and_foreign_files(tmp_path):
    for name in ("b/2.txt.xz", "b/1.TXT", "a.jsonl", "c/d/e.txt.gz", ".hidden.txt", ".git/x.txt"):
        write(tmp_path / name, rows(name) if "jsonl" in name else name)
    write(tmp_path / "README.md", "no")
    assert list(documents(str(tmp_path))) == ["a.jsonl", "b/1.TXT", "b/2.txt.xz", "c/d/e.txt.gz"]


def test_pattern_is_read_in_order(tmp_path):
    for name in ("10.txt", "9.txt", "1.txt", "deep/0.txt"):
        write(tmp_path / name, name)
    write(tmp_path / "a[1].txt", "brackets")
    assert list(documents(f"{tmp_path}/[0-9]*.txt")) == ["1.txt", "10.txt", "9.txt"]
    assert list(documents(f"{tmp_path}/**/*0.txt")) == ["10.txt", "deep/0.txt"]
    assert list(documents(f"{tmp_path}/a[1].txt")) == ["brackets"]  # a file of that name comes before a pattern


def test_files_are_streamed(tmp_path):
    good = "line\n\n" * 100_000
    path = write(tmp_path / "a.txt", good.encode() + b"\xff\n")
    reader = documents(path)
    assert next(reader) == "line"  # the last line is wrong, so it has not been looked at yet
    with pytest.raises(UserError, match="a.txt:200001: byte 1 "):
        list(reader)


def test_missing_sources(tmp_path):
    assert "no such file or folder" in error(tmp_path / "missing.txt")
    assert "no file matches" in error(tmp_path / "*.txt")
    (tmp_path / "sub.txt").mkdir()
    assert "no file matches" in error(tmp_path / "*.txt*")  # folders are not files
    write(tmp_path / "README.md", "no")
    message = error(tmp_path)
    assert "nothing in this folder" in message and "*.jsonl.xz" in message


def test_unknown_extensions(tmp_path):
    write(tmp_path / "a.txt", "fine")
    path = write(tmp_path / "b.csv", "no")
    assert error(path).startswith(path) and "*.txt.gz" in error(path)
    assert error(tmp_path / "*").startswith(path)


@pytest.mark.parametrize("packed", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", ["cut", "corrupt", "not packed"])
def test_broken_compression(tmp_path, packed, kind):
    pack = PACK.get(packed) or pytest.importorskip("zstandard").ZstdCompressor(write_checksum=True).compress
    data = pack(os.urandom(50_000).hex().encode())
    broken = {"cut": data[:-2000], "corrupt": data[:9000] + b"\0" * 200 + data[9200:], "not packed": b"plain text\n"}[kind]
    path = write(tmp_path / f"a.txt{packed}", broken)
    assert error(path).startswith(f"{path}: cannot be read")


def test_unreadable_files(tmp_path, monkeypatch):
    write(tmp_path / "a.txt", "fine")
    os.symlink(tmp_path / "gone", tmp_path / "b.txt")
    assert error(tmp_path).startswith(f"{tmp_path}/b.txt: cannot be read (No such file")
    with pytest.raises(UserError, match="b.txt: cannot be read"):
        fingerprint(str(tmp_path))

    def forbidden(*_):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr("builtins.open", forbidden)  # root may open everything, so chmod would not do
    assert error(tmp_path / "a.txt").startswith(f"{tmp_path}/a.txt: cannot be read (Permission denied)")


def test_unreadable_folder(tmp_path, monkeypatch):
    write(tmp_path / "a.txt", "fine")
    write(tmp_path / "closed/b.txt", "not fine")
    scandir = os.scandir

    def forbidden(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)
    monkeypatch.setattr(os, "scandir", forbidden)
    assert error(tmp_path).startswith(f"{tmp_path}/closed: cannot be read (Permission denied)")


def test_other_encodings(tmp_path):
    path = write(tmp_path / "a.txt.gz", gzip.compress(b"fine\n\n" + "un café".encode("latin-1")))
    message = error(path)
    assert message.startswith(f"{path}:3: byte 7 of the line (0xe9)") and "iconv" in message


@pytest.mark.parametrize("line", ["{text: 1}", '{"text": "cut', '["text"]', '"text"', "1", "{}", '{"Text": "x"}', '{"text": 3}', '{"text": null}',
                                  '{"text": ["x"]}', r'{"text": "\ud800"}', "[" * 100_000, '{"text": ' + "1" * 5000 + "}"])
def test_wrong_json_lines(tmp_path, line):
    path = write(tmp_path / "a.jsonl", rows("fine") + "\n" + line + "\n" + rows("fine"))
    message = error(path)
    assert message.startswith(f"{path}:3: ") and '{"text": "..."}' in message and len(message) < len(path) + 300


@pytest.mark.parametrize("name, content", [("a.txt", ""), ("a.txt", " \n\n\t\n"), ("a.jsonl", rows("", " \n ")), ("a.txt.gz", "")])
def test_empty_corpus(tmp_path, name, content):
    assert "no text" in error(write(tmp_path / name, content))


def test_compressed_by_zstandard(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    packed = zstandard.ZstdCompressor().compress
    (tmp_path / "a.txt.zst").write_bytes(packed(b"one\n\ntwo\n") + packed(b"more of two\n"))  # two frames, as pzstd makes them
    (tmp_path / "b.jsonl.zst").write_bytes(packed(rows("three").encode()))
    assert list(documents(str(tmp_path))) == ["one", "two\nmore of two", "three"]
    (tmp_path / "a.txt.zst").write_bytes(b"no zstandard at all")
    assert "a.txt.zst: cannot be read" in error(tmp_path)


def test_parquet_as_culturax_has_it(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"text": ["one\n\n still one ", None, "two"], "url": ["a", "b", "c"]})
    parquet.write_table(table, tmp_path / "en_part_00000.parquet", row_group_size=2)
    assert list(documents(str(tmp_path))) == ["one\n still one", "two"]
    parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "en_part_00000.parquet")
    assert 'expected a column "text" of strings, found text' in error(tmp_path)
    parquet.write_table(pyarrow.table({"content": ["a"]}), tmp_path / "en_part_00000.parquet")
    assert 'expected a column "text" of strings, found content' in error(tmp_path)
    (tmp_path / "en_part_00000.parquet").write_bytes(b"PAR1 and no more")
    assert "en_part_00000.parquet: cannot be read" in error(tmp_path)


@pytest.mark.parametrize("name, module", [("a.parquet", "pyarrow"), ("a.txt.zst", "zstandard")])
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, name, module):
    (tmp_path / name).write_bytes(b"something")
    monkeypatch.setitem(sys.modules, module, None)
    assert f"install {module}: pip install {module}" in error(tmp_path)


def test_files_in_a_shuffled_order(tmp_path):
    for i in range(20):
        write(tmp_path / f"{i:02}.txt", str(i))
    orders = [list(documents(str(tmp_path), shard_seed=seed)) for seed in (0, 1, 1, 2)]
    assert orders[0] == [str(i) for i in range(20)] and orders[1] == orders[2]
    assert len({tuple(order) for order in orders}) == 3 and all(sorted(order) == sorted(orders[0]) for order in orders)


def test_fingerprint_names_files_in_order_and_follows_their_bytes(tmp_path):
    b, a = write(tmp_path / "b.txt", "b"), write(tmp_path / "a.txt.gz", "a")
    first = fingerprint(str(tmp_path))
    assert list(first) == [a, b]
    assert first[b] == hashlib.sha256(b"1" + b"b").hexdigest()  # of size and bytes
    assert fingerprint(str(tmp_path)) == first
    write(tmp_path / "b.txt", "c")
    second = fingerprint(str(tmp_path))
    assert second[a] == first[a] and second[b] != first[b]
    with pytest.raises(UserError, match="no such file"):
        fingerprint(str(tmp_path / "missing.txt"))


# ---- builtin ----

def cleaned(docstring: str) -> list[str]:
    return prose(textwrap.dedent(docstring))


def test_wrapped_lines_become_one_paragraph():
    assert prose("""Return the parts of a path that the
        caller has asked for.

        The second paragraph is on
        its own.
        """) == ["Return the parts of a path that the caller has asked for.", "The second paragraph is on its own."]


@pytest.mark.parametrize("markup, plain", [
    ("``code`` of", "code of"), ("`code` of", "code of"), (":func:`code` of", "code of"), (":func:`~a.b.code` of", "code of"),
    (":ref:`the code <a-target>` of", "the code of"), ("`the code <http://a.b>`_ of", "the code of"), ("*code* and **more** of", "code and more of"),
    (":math:`n` of", "n of"), ("the code [1]_ of", "the code [1] of"), ("snake_case_names and __init__ of", "snake_case_names and __init__ of")])
def test_inline_markup_goes(markup, plain):
    assert prose(f"This is the {markup} a sentence that stays.") == [f"This is the {plain} a sentence that stays."]


def test_descriptions_of_parameters_stay_and_their_headers_go():
    assert cleaned("""
        Parameters
        ----------
        x : array_like, optional
            The values to be sorted, which
            may be in any order.

        Args:
            dim (int, optional): The dimension that is reduced, or all of the dimensions
                when there is none given.
            keepdim (bool): Whether the result has the same number of dimensions as the input.
            out (Tensor): The tensor that the result of this is written to, when there is one.

        :param name: The name that the new file is given.
        :type name: str
        @param path: The path to which the file is written.
        """) == ["The values to be sorted, which may be in any order.",
                 "The dimension that is reduced, or all of the dimensions when there is none given.",
                 "Whether the result has the same number of dimensions as the input.",
                 "The tensor that the result of this is written to, when there is one.",
                 "The name that the new file is given.", "The path to which the file is written."]


def test_bullets_are_paragraphs():
    assert cleaned("""
        - The first of the items is
          wrapped to two lines.
        * The second of the items is not.
        2. The third of them has a number.
        """) == ["The first of the items is wrapped to two lines.", "The second of the items is not.", "The third of them has a number."]


@pytest.mark.parametrize("other", [
    ">>> f(1)\nThis is the output of an example.", "Examples\n--------\nThis is shown to be an example.",
    "Example:\n    This is the text of an example.", "Literally::\n\n    This is the text of a literal block.\n\n    And so is the text that follows it.",
    ".. code-block:: text\n   :linenos:\n\n   This is the code of a block.", ".. [1] A reference to the work of someone else.",
    "Table  of     things and     of others that are.", "Title of the section to come.\n=============", "x = f(a) is the result of that.",
    "This has no end and is not a sentence", "Too short to keep.", "Der Wert wird in einer Datei auf der Platte gespeichert.",
    "The FooBar and the BazQux of FOO and NewSpam.", "a | b | the table of the things here.", r"The value of \alpha is a part of the model.",
    "See https://example.com/ for a list of the values."])
def test_what_is_not_prose_goes(other):
    text = f"The text before it is a sentence.\n\n{other}\n\nNotes\n-----\nThe text after it is another sentence."
    assert prose(text) == ["The text before it is a sentence.", "The text after it is another sentence."]


def test_notes_are_prose_but_not_their_directive():
    assert cleaned("""
        .. note:: This is something that the reader should know.
        .. versionchanged:: 3.2
           This is something that was changed in a release.
        """) == ["This is something that the reader should know.", "This is something that was changed in a release."]


MODULE = '''
"""The documentation of the module is the first of them.

It has a paragraph that is repeated in another module."""
from somewhere import add_docstr
add_docstr(f, r"""f(x) -> y

The documentation of a function is passed to a call.
""".format())
topics = {'a': 'The first of the lines is '
               'in two parts.\\n', 'b': f"not {this} which is the part of a string."}
if True:
    pass
else:
    class A:
        """The documentation of the class is under a condition."""
        def f(self):
            """The documentation of the method is in the class."""
            raise ValueError("The message of an error is not documentation.")
            def g():
                """The documentation of the function is in the method."""
'''
PROSE = """The documentation of the module is the first of them.
It has a paragraph that is repeated in another module.
The documentation of a function is passed to a call.
The first of the lines is in two parts.
The documentation of the class is under a condition.
The documentation of the method is in the class.
The documentation of the function is in the method."""


def test_harvest_of_a_package(tmp_path):
    write(tmp_path / "p/a.py", MODULE.encode())
    write(tmp_path / "p/b/__init__.py", b'''"""It has a paragraph that is REPEATED, in another module.

    %s""" ''' % b"\n\n    ".join(b"This is the %s of the lines of the module." % word.encode() for word in "one two three four five".split()))
    for name, content in {"c.py": f'"""This is the only paragraph of a module, {"and it is long, " * 20}but alone."""',
                          "f.py": '"""This is the first of two.\n\nThe two of them are short."""', "d.py": "def broken(", "tests/a.py": MODULE + "#",
                          "e.py": '# coding: latin-1\n"""\xe9 is the one letter that is not UTF-8 in this."""', "a.txt": MODULE}.items():
        write(tmp_path / "p" / name, content.encode("latin-1"))
    single = write(tmp_path / "single.py", MODULE.replace("The ", "In this module the ").encode())
    found = harvest([str(tmp_path / "p"), single], workers=1)
    assert found[0] == PROSE
    assert found[1].startswith("This is the one of") and found[1].count("\n") == 4  # the repeated paragraph is gone
    assert found[2].startswith("In this module the documentation") and len(found) == 3
    assert harvest([str(tmp_path / "p"), single], workers=3) == found


def test_real_documentation_reads_as_prose(monkeypatch):
    standard = os.path.dirname(os.path.dirname(logging.__file__))
    found = harvest([os.path.join(standard, name) for name in ("json", "email", "logging", "argparse.py")], workers=2)
    text = "\n".join(found)
    assert len(text) > 50_000 and len(found) > 15
    assert not re.search(r">>>|::|``|:param|^\s|\s$|  |\n\n", text, re.M)
    assert all(re.search(r"[.!?][\"')]*$", paragraph) for paragraph in text.split("\n"))
    words = re.findall(r"[a-z]+", text.lower())
    assert 0.05 < words.count("the") / len(words) < 0.12
    monkeypatch.setattr(builtin, "_harvested", found)
    assert list(documents("builtin")) == found
    first = fingerprint("builtin")
    assert list(first) == ["builtin"] and len(first["builtin"]) == 64
    monkeypatch.setattr(builtin, "_harvested", found[::-1])
    assert fingerprint("builtin") != first


@pytest.mark.skipif("SLOW_TESTS" not in os.environ, reason="half a minute; SLOW_TESTS=1 runs it")
def test_builtin_is_large_enough():
    found = list(documents("builtin"))
    assert sum(len(text.encode()) for text in found) > 5_000_000
    paragraphs = [paragraph for text in found for paragraph in text.split("\n")]
    assert len(paragraphs) == len(set(paragraphs)) > 40_000
