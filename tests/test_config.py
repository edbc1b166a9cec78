"""The grammar of knobs: files, then --key=value; types, impossible values, --help, and errors of one line."""

import re
import shlex
from dataclasses import replace

import pytest

from runtime.config import FIELDS, Config, load
from runtime.errors import UserError
from conftest import ROOT, overrides, run_command


def write(path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def error(*arguments: str) -> str:
    with pytest.raises(UserError) as e:
        load(list(arguments))
    assert "\n" not in str(e.value)
    return str(e.value)


# ---- what wins ----

def test_no_arguments_make_the_defaults():
    assert load([]) == Config()


def test_files_in_the_order_given_then_arguments(tmp_path):
    first = write(tmp_path / "first.py", '"""What it is for."""\n\nseed = 2\nn_layer = 2  # why\nmax_steps = 2000\nmax_steps = 3000\n')
    second = write(tmp_path / "second.py", "seed = 4\n")
    expected = Config(seed=5, n_layer=2, max_steps=3000)
    assert load([first, second, "--seed=5"]) == expected
    assert load(["--seed=5", first, second]) == expected  # wherever the argument stands
    assert load(["--seed=6", first, "--seed=5"]) == expected  # of two arguments the later
    assert load([first, second]).seed == 4
    assert load([second, first]).seed == 2


def test_a_config_saved_as_arguments_or_as_json_comes_back(tmp_path):
    config = Config(seed=7, learning_rate=2.5e-4, targets=("clone",), fact_frequencies=(1, 4), mix={"en": 1.0}, tie_embeddings=False,
                    source="my text.txt", codeswitch_target="vanilla")
    assert load(overrides(config)) == config
    lines = [f"{key} = {value!r}\n" for key, value in config.plain().items()]  # lists where there were tuples
    assert load([write(tmp_path / "saved.py", "".join(lines))]) == config


# ---- types ----

@pytest.mark.parametrize("argument, value", [
    ("--seed=12", 12),
    ("--eval_tokens=200_000", 200_000),
    ("--learning_rate=3e-4", 0.0003),
    ("--learning_rate=2", 2.0),
    ("--weight_decay=0", 0.0),
    ("--tie_embeddings=False", False),
    ("--tie_embeddings=true", True),
    ("--tie_embeddings=FALSE", False),
    ("--method=joint", "joint"),
    ("--method=12", "12"),
    ("--source=a=b c.txt", "a=b c.txt"),
    ("--source=None", "None"),
    ("--fact_frequencies=1,2", (1, 2)),
    ("--fact_frequencies=3", (3,)),
    ("--fact_frequencies=(4, 5)", (4, 5)),
    ("--fact_frequencies=[6]", (6,)),
    ("--targets=de,zh --mix={'en': 1}", ("de", "zh")),
    ("--targets=clone", ("clone",)),
    ("--targets=('de',) --mix={'en': 1}", ("de",)),
    ("--mix={'en': 1, 'clone': 0.5}", {"en": 1.0, "clone": 0.5}),
    ('--mix={"clone": 1}', {"clone": 1.0}),
    ('--budget={"en": "10B",}', {"en": 1e10}),
    ('--budget={"en": "1.5M"}', {"en": 1.5e6}),
    ('--budget={"en": "200k"}', {"en": 2e5}),
])
def test_an_argument_has_the_type_of_its_knob(argument, value):
    first, *more = argument.split(" --mix")
    found = getattr(load([first, *("--mix" + m for m in more)]), first[2:].partition("=")[0])
    assert found == value and type(found) is type(value)
    if isinstance(value, dict):
        assert all(type(v) is float for v in found.values())


@pytest.mark.parametrize("key, value, expected", [
    ("seed", "1.0", "int"), ("seed", "True", "int"), ("seed", "one", "int"), ("seed", "", "int"),
    ("learning_rate", "fast", "float"), ("learning_rate", "nan", "float"), ("learning_rate", "True", "float"), ("learning_rate", "[1]", "float"),
    ("tie_embeddings", "1", "bool"), ("tie_embeddings", "yes", "bool"),
    ("targets", "", "tuple[str, ...]"), ("targets", "(1, 2)", "tuple[str, ...]"),
    ("fact_frequencies", "('a',)", "tuple[int, ...]"), ("fact_frequencies", "()", "tuple[int, ...]"),
    ("fact_frequencies", "[1.5]", "tuple[int, ...]"),
    ("mix", "0.5", "dict[str, float]"), ("mix", "{}", "dict[str, float]"), ("mix", "{'en': '1'}", "dict[str, float]"),
    ("budget", "{'en': '10X'}", "dict[str, float]"), ("budget", "{'en': 'B'}", "dict[str, float]"),
    ("mix", "{'en': True}", "dict[str, float]"), ("mix", "{'en': '1B'}", "dict[str, float]"), ("mix", "{1: 1.0}", "dict[str, float]"), ("mix", "{'en'", "dict[str, float]"),
])
def test_a_wrong_type_names_the_one_expected(key, value, expected):
    message = error(f"--{key}={value}")
    assert message.startswith(f"--{key}: ") and f"of type {expected}, found" in message


def test_whole_numbers_are_asked_for_in_words():
    assert error("--fact_frequencies=1,x") == "--fact_frequencies: expected whole numbers separated by commas, found '1,x'"
    assert error("--fact_frequencies=1.5") == "--fact_frequencies: expected whole numbers separated by commas, found '1.5'"


def test_a_wrong_type_in_a_file_names_file_and_line(tmp_path):
    path = write(tmp_path / "c.py", "seed = 1\n\nmethod = 3\n")
    assert error(path) == f"{path}:3: method must be of type str, found 3"


def test_a_number_too_large_for_a_float_is_no_traceback():
    assert "learning_rate" in error("--learning_rate=1" + 400 * "0")


# ---- names ----

def test_an_unknown_knob_names_the_closest(tmp_path):
    assert error("--learning_rat=1") == "--learning_rat: there is no knob named 'learning_rat'; did you mean learning_rate?"
    assert error("--n-layer=1").endswith("did you mean n_layer?")
    assert error("--xyzzy=1").endswith("--help lists every knob")
    assert error("--run_dir=x").startswith("--run_dir: there is no knob named 'run_dir'")  # a property, not a knob
    path = write(tmp_path / "c.py", "# why\nblok_size = 8\n")
    assert error(path) == f"{path}:2: there is no knob named 'blok_size'; did you mean block_size?"


def test_an_argument_needs_a_value():
    assert error("--seed") == "--seed: expected --key=value"
    assert error("--=1").startswith("--: there is no knob named ''")


# ---- files ----

def test_deep_nesting_is_no_traceback(tmp_path):
    for text in ("seed = " + 5000 * "-" + "1\n", "seed = " + 5000 * "[" + 5000 * "]" + "\n"):
        path = write(tmp_path / "deep.py", text)
        assert error(path).startswith(f"{path}:1: ")


def test_a_missing_file(tmp_path):
    assert error(str(tmp_path / "none.py")).startswith(f"cannot read config file {tmp_path}/none.py: No such file")
    assert "Is a directory" in error(str(tmp_path))
    assert error("seed=3").startswith("cannot read config file seed=3")  # the dashes were forgotten


@pytest.mark.parametrize("code, line", [
    ("import os\nos.mkdir({marker!r})", 1),
    ("seed = 1\nopen({marker!r}, 'w')", 2),
    ("seed = 1\n\nseed = __import__('os').mkdir({marker!r}) or 3", 3),
    ("data_dir = f'{{open({marker!r}, \"w\")}}'", 1),
    ("data_dir = [open({marker!r}, 'w') for _ in 'a'][0].name", 1),
    ("for seed in [1]:\n    open({marker!r}, 'w')", 1),
    ("\nseed: int = open({marker!r}, 'w').fileno()", 2),
    ("seed = n_layer = 3", 1),
    ("seed, n_layer = 1, 3", 1),
    ("seed += 1", 1),
    ("max_steps = 10 * 100", 1),
    ("seed = n_layer", 1),
])
def test_code_is_refused_and_never_run(tmp_path, code, line):
    marker = tmp_path / "it ran"
    path = write(tmp_path / "c.py", code.format(marker=str(marker)))
    assert error(path).startswith(f"{path}:{line}: ")
    assert not marker.exists()


def test_what_is_not_python_names_the_line(tmp_path):
    path = write(tmp_path / "c.py", "seed = 1\nlearning rate = 3\n")
    assert error(path).startswith(f"{path}:2: not a config file")
    (tmp_path / "latin.py").write_bytes("# caf\xe9\n".encode("latin-1"))
    assert "latin.py:1: not a config file" in error(str(tmp_path / "latin.py"))
    assert "not a config file" in error(write(tmp_path / "null.py", "seed = 1\0"))


# ---- impossible values ----

@pytest.mark.parametrize("argument, names", [
    ("--dtype=fp8", "dtype must be one of auto, bf16, fp16, fp32"),
    ("--compile=yes", "compile must be one of"),
    ("--codeswitch_target=output", "codeswitch_target must be one of input-only, vanilla, original"),
    ("--batch_size=0", "batch_size must be greater than 0, found 0"),
    ("--block_size=-1", "block_size must be greater than 0"),
    ("--learning_rate=0", "learning_rate must be greater than 0"),
    ("--align_tau=0.0", "align_tau must be greater than 0"),
    ("--workers=-1", "workers must not be negative, found -1"),
    ("--weight_decay=-0.1", "weight_decay must not be negative"),
    ("--codeswitch_ratio=1.01", "codeswitch_ratio must be between 0 and 1, found 1.01"),
    ("--val_fraction=-0.1", "val_fraction must be between 0 and 1"),
    ("--beta2=1", "beta2 must be"),  # Adam divides by 1 - beta
    ("--learning_rate=1e999", "learning_rate must be"),
    ("--n_embd=130", "n_embd (130) must be a multiple of n_head (4)"),
    ("--targets=en", "pivot and targets must be different languages, found en, en"),
    ("--targets=clone,clone", "pivot and targets must be different"),
    ("--targets=../x", "language names are letters, digits and hyphens, found '../x'"),
    ("--only=fr", "only must be a language that mix gives a weight, found 'fr'"),
    ("--align_coverage=0", "align_coverage must be greater than 0"), ("--align_coverage=1.5", "align_coverage must be between 0 and 1"),
    ("--mix={'fr': 1}", "mix names 'fr', which is neither the pivot nor a target (en, clone)"),
    ("--mix={'en': 2, 'clone': -1}", "mix: the weight of clone must not be negative"),
    ("--mix={'en': 0}", "mix: some language needs a weight above 0"),
    ("--mix={'en': 1e999}", "mix"),
    ("--method=a/b", "method is the name of a folder"),
    ("--method=", "method is the name of a folder"),
    ("--method=..", "method is the name of a folder"),
    ("--data_dir=", "data_dir"),
])
def test_an_impossible_value_names_the_knob(argument, names):
    assert names in error(argument)


def test_the_ends_of_a_range_are_possible():
    load(["--codeswitch_ratio=1", "--val_fraction=0", "--beta1=0", "--workers=0", "--stage1_steps=0", "--weight_decay=0"])


@pytest.mark.parametrize("path", sorted((ROOT / "config").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_configs_of_the_project_load(path):
    load([str(path)])


def test_folders_of_a_run():
    config = replace(Config(), out_dir="o", method="m", seed=3)
    assert (config.run_dir, config.stage1_dir) == ("o/m/seed3", "o/align/seed3")


# ---- the command line ----

def test_help_lists_every_knob_with_its_default_and_comment(capsys):
    with pytest.raises(SystemExit) as e:
        load(["config/missing.py", "--seed=wrong", "--help"], "\nHow to use it.\n")
    assert e.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("How to use it.\n")
    source = open(load.__code__.co_filename, encoding="utf-8").read()
    for name in FIELDS:
        (line,) = re.findall(rf"^    {name}: .*", source, re.M)
        comment = line.partition("  # ")[2]
        (shown,) = re.findall(rf"^  --{name}=.*\n.*", text, re.M)
        assert comment in shown, name
    shown = re.findall(r"^  (--\w+=.*?)  \(", text, re.M)
    assert [argument[2:].partition("=")[0] for argument in shown] == list(FIELDS)
    for argument in shown:  # one at a time, typed into a shell without its quotes, a default is what it was
        name, _, value = argument[2:].partition("=")
        argument = f"--{name}={value}" if value[0] in "[{" else shlex.split(argument)[0]
        assert load([argument]) == Config(), argument


def test_errors_of_a_command_are_one_line_and_exit_code_1(tmp_path):
    for command in ("data.py", "train.py"):
        done = run_command(command, f"--data_dir={tmp_path}/none", "--max_step=3")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "error: --max_step: there is no knob named 'max_step'; did you mean max_steps?\n"
    assert not (tmp_path / "none").exists()
