"""
Every knob of an experiment, in one dataclass, and the grammar that sets them:

    python train.py config/demo.py config/method/prealign.py --learning_rate=3e-4
    python train.py --help                      # every knob, its default and what it does

Config files are Python assignments (`learning_rate = 1e-3`), read in the order given; then `--key=value`; later wins.
"""

import ast
import contextlib
import dataclasses
import difflib
import json
import math
import os
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from runtime.errors import UserError


@dataclass(frozen=True)
class Config:
    # where things are
    data_dir: str = "bins/demo"         # made by data.py, read by everything else
    out_dir: str = "out/demo"           # runs go to OUT_DIR/METHOD/seedSEED
    method: str = "joint"               # name of the run's folder and of its row in the report
    seed: int = 1                       # of weights, row order, codeswitching and word sampling

    # data
    source: str = "builtin"             # "builtin", or a file, folder or pattern, as "texts/{language}"
    pivot: str = "en"                   # the language most of the data is in
    targets: tuple[str, ...] = ("clone",)  # languages to transfer to; "clone" is En-Clone (ids + V)
    budget: dict[str, float] = field(default_factory=dict)  # training tokens, {"en": "10B"}; not named: all
    shard_seed: int = 0                 # of the order of the text's files; 0 = by name
    dictionary: str = ""                # of targets but En-Clone, as "dictionaries/en-{language}.txt"
    dictionary_target_first: bool = False  # its translations stand before the pivot's words
    dictionary_translations: int = 5    # of a word at most, the most common ones in the target's text (0: all)
    translation_tokens: int = 0         # longer translations are left out of the table (0: none is)
    table: str = ""                     # a table.tsv that data.py made, edited: used in place of dictionaries
    tokenizer: str = "train"            # a BPE vocabulary of the corpus, or a tiktoken name (gpt2, o200k_base)
    vocab_size: int = 2048              # V, end-of-text included, of a trained vocabulary
    tokenizer_share: dict[str, float] = field(default_factory=dict)  # share of its documents that it is trained on
    min_count: int = 20                 # a word must be seen more often than this to enter the alignment table
    val_fraction: float = 0.02          # share of the text held out, by whole documents
    workers: int = 0                    # processes of data.py; 0 = one per core. The result does not depend on it
    fact_count: int = 128               # CLKA facts stated in the pivot's training data; 0 = none
    fact_frequencies: tuple[int, ...] = (40,)  # how often each is stated; several values are dealt out in turn
    fact_languages: tuple[str, ...] = ("en",)  # in which they are stated, dealt out in turn
    fact_periods: int = 1               # parts of stage 2, each of which states facts of its own (Fig. 4)

    # batches
    mix: dict[str, float] = field(default_factory=lambda: {"en": 0.95, "clone": 0.05})  # share of rows per language
    only: str = ""                      # train on this language's rows alone, over and over; "" = on all
    batch_size: int = 16                # rows per step, over all processes
    micro_batch_size: int = 16          # rows per forward pass and process; the rest is gradient accumulation
    block_size: int = 256               # tokens per row
    codeswitch_ratio: float = 0.05      # share of the pivot's aligned words replaced by a translation
    codeswitch_target: str = "input-only"  # or "vanilla" (Eq. 5), "original" (first token of the word replaced)

    # model
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    tie_embeddings: bool = True         # one matrix for input and output embeddings
    init_std: float = 0.02              # of weight matrices at initialisation
    embedding_init_std: float = 0.02    # of token embeddings; larger ones turn more slowly and stay aligned longer
    init_from: str = "scratch"          # or "align" (stage 1), "golden", "hf:FOLDER" (GPT-2), a method, a run's folder

    # optimisation
    max_steps: int = 1500               # language-model steps in all, stage 1's included
    learning_rate: float = 1e-3         # peak of the cosine schedule, which runs through both stages
    min_learning_rate_ratio: float = 0.1  # final learning rate / peak
    warmup_ratio: float = 0.05          # share of max_steps in which the rate rises linearly
    weight_decay: float = 0.1           # AdamW, on matrices and embeddings
    beta1: float = 0.9
    beta2: float = 0.99
    grad_clip: float = 1.0              # global norm; 0 = off

    # alignment
    stage1_steps: int = 250             # each with a language-model batch, counted in max_steps
    align_weight: float = 0.1           # of the contrastive loss (Eq. 4)
    align_when: str = "none"            # steps of train.py that align: "none", "all" (on the fly), "last" (post)
    align_entries: int = 512            # table entries per step, over all processes
    align_tau: float = 0.1              # temperature of the contrastive loss (Eq. 2)
    align_power: float = 0.5            # entries are drawn by frequency ** align_power
    align_coverage: float = 1.0         # share of the table's entries that is used, the most frequent ones (Table 5)

    # running
    device: str = "auto"                # "auto", "cpu", "cuda" or "cuda:N"
    dtype: str = "auto"                 # "bf16", "fp16", "fp32"; "auto": bf16 where the hardware has it, else fp32
    compile: str = "auto"               # torch.compile: "auto" (on CUDA), "on" or "off"
    log_interval: int = 20              # steps
    checkpoint_interval: int = 250      # steps
    wandb: str = ""                     # project of Weights & Biases to log to; "" = none
    tensorboard: bool = False           # log to OUT_DIR/METHOD/seedSEED/tensorboard
    snapshot_interval: int = 0          # steps between copies of the weights kept for tools.dynamics; 0 = none

    # evaluation
    eval_tokens: int = 200_000          # held-out tokens per language; 0 = all
    eval_text: str = ""                 # other text to measure perplexity on, "xquad/{language}.txt"; "" = none
    eval_batch_size: int = 32           # rows
    eval_words: int = 2000              # table entries whose similarity is measured
    sample_count: int = 200             # continuations sampled to see whether languages mix (Table 4)
    sample_prompt: int = 16             # tokens of held-out English before each
    sample_tokens: int = 32             # tokens of each
    sample_temperature: float = 1.0
    prompt: str = ""                    # eval.py sample goes on from this text

    # zero-shot transfer (eval.py xnli)
    nli_train: str = "builtin"          # English pairs, or a file: XNLI, MultiNLI, SNLI, SICK or PAWS-X as published
    nli_dev: str = "builtin"            # English pairs that choose the epoch
    nli_test: str = "builtin"           # pairs in every language
    nli_builtin: int = 2500             # hypotheses of the built-in training pairs; a tenth for dev and for test
    nli_epochs: int = 3
    nli_batch_size: int = 32
    nli_learning_rate: float = 5e-4
    nli_seeds: int = 1                  # fine-tunings, each with a seed of its own

    # a dictionary from a language model (translate.py)
    llm_url: str = "https://api.openai.com/v1"  # of an OpenAI-compatible endpoint
    llm_model: str = "gpt-4o-mini"
    llm_key: str = "OPENAI_API_KEY"     # the environment variable that holds the key
    llm_translations: int = 5           # per word, at most
    llm_requests: int = 8               # at a time
    llm_price_in: float = 0.0           # dollars per million tokens, for the cost; 0 = not told
    llm_price_out: float = 0.0
    dry_run: bool = False               # translate.py says what it would do and asks for nothing

    @property
    def written(self) -> tuple[str, ...]:
        """The languages that have text of their own: the pivot, and every target but En-Clone."""
        return (self.pivot, *(language for language in self.targets if language != "clone"))

    def source_of(self, language: str) -> str:
        return self.source.replace("{language}", language)

    def dictionary_of(self, language: str) -> str:
        return self.dictionary.replace("{language}", language)

    @property
    def run_dir(self) -> str:
        return os.path.join(self.out_dir, self.method, f"seed{self.seed}")

    @property
    def pretrained(self) -> str:
        """The Hugging Face folder that init_from names, or "" for none."""
        return self.init_from.removeprefix("hf:") if self.init_from.startswith("hf:") else ""

    @property
    def stage1_method(self) -> str:
        """The name of stage 1's own run: "align", or "align25" of a quarter of the table."""
        return "align" + (f"{100 * self.align_coverage:g}" if self.align_coverage < 1 else "")

    @property
    def stage1_dir(self) -> str:
        return os.path.join(self.out_dir, self.stage1_method, f"seed{self.seed}")

    def stage1(self) -> "Config":
        """
        Stage 1 in terms of train.py's loop: its first steps, with the contrastive loss and without codeswitching. Knobs
        of stage 2 are set to their defaults, so that one stage 1 serves every method.
        """
        return replace(self, method=self.stage1_method, init_from=self.init_from if self.pretrained else "scratch",
                       align_when="all", codeswitch_ratio=0.0, codeswitch_target=Config.codeswitch_target, only="")

    def plain(self) -> dict:
        """As JSON would give it back (tuples are lists): what is stored, and compared with what was stored."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


FIELDS = {f.name: f for f in dataclasses.fields(Config)}
TYPES = typing.get_type_hints(Config)
IN_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple[str, ...]: "one or more names separated by commas",
    tuple[int, ...]: "one or more whole numbers separated by commas",
    dict[str, float]: "a number for each language, as {'en': 0.9}",
}
CHOICES = {
    "codeswitch_target": ("input-only", "vanilla", "original"),
    "align_when": ("none", "all", "last"),
    "dtype": ("auto", "bf16", "fp16", "fp32"),
    "compile": ("auto", "on", "off"),
}
# What numbers must be; "" is all of them.
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "finite and not negative": (lambda x: 0 <= x < math.inf, ""),
    "greater than 0": (lambda x: x > 0, """
        vocab_size batch_size micro_batch_size block_size n_layer n_head n_embd init_std embedding_init_std max_steps
        learning_rate align_entries align_tau align_coverage log_interval checkpoint_interval eval_batch_size eval_words
        sample_count sample_prompt sample_tokens sample_temperature fact_periods nli_builtin nli_epochs nli_batch_size
        nli_learning_rate nli_seeds llm_translations llm_requests"""),
    "at most 1": (lambda x: x <= 1, """
        codeswitch_ratio warmup_ratio min_learning_rate_ratio align_coverage"""),
    "less than 1": (lambda x: x < 1, "beta1 beta2 val_fraction"),
    "less than 2**63": (lambda x: x < 2**63, "seed"),
}


def _count(value: typing.Any) -> typing.Any:
    """A number written as "1.5k", "100M" or "10B"; anything else as it is."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMB])", value) if isinstance(value, str) else None
    return float(match[1]) * {"k": 1e3, "M": 1e6, "B": 1e9}[match[2]] if match else value


def _typed(key: str, value: typing.Any, where: str) -> typing.Any:
    """`value` as the type of knob `key`. Raises UserError that names the type expected and the value found."""
    if key not in FIELDS:
        close = difflib.get_close_matches(key, FIELDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else "; --help lists every knob"
        raise UserError(f"{where}: there is no knob named {key!r}{hint}")
    expected = TYPES[key]
    if expected is float and type(value) is int:
        value = float(value) if abs(value) < 2**1000 else math.inf
    good = type(value) is expected
    if typing.get_origin(expected) is tuple:
        item = typing.get_args(expected)[0]
        value = (value,) if type(value) is item else value
        good = isinstance(value, (tuple, list)) and len(value) > 0 and all(type(v) is item for v in value)
        value = tuple(value) if good else value
    if typing.get_origin(expected) is dict:
        if isinstance(value, dict):
            value = {k: _count(v) if key == "budget" else v for k, v in value.items()}
        good = isinstance(value, dict) and all(isinstance(k, str) and type(v) in (int, float) for k, v in value.items())
        value = {k: float(v) for k, v in value.items()} if good else value
    if not good:
        raise UserError(f"{where}: {key} must be {IN_WORDS[expected]}, found {value!r}")
    return value


def _read_file(path: str) -> dict[str, typing.Any]:
    """The assignments of a config file. Literals only, so that reading a config never runs code."""
    try:
        with open(path, encoding="utf-8") as f:
            tree = ast.parse(f.read(), filename=path)
    except OSError as e:
        raise UserError(f"cannot read config file {path}: {e.strerror}; those of the project are in config/, "
                        "and a knob is --key=value") from e
    except (SyntaxError, ValueError, MemoryError, RecursionError) as e:
        where = f"{path}:{getattr(e, 'lineno', None) or 1}"
        raise UserError(f"{where}: not a config file ({getattr(e, 'msg', e)}); expected lines like "
                        "`learning_rate = 1e-3`") from e
    values: dict[str, object] = {}
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        where = f"{path}:{node.lineno}"
        match node:
            case ast.Assign(targets=[ast.Name(id=key)]):
                with contextlib.suppress(ValueError, TypeError, MemoryError, RecursionError):
                    values[key] = _typed(key, ast.literal_eval(node.value), where)
                    continue
        raise UserError(f"{where}: expected `knob = value` with a plain value")
    return values


def _read_override(argument: str) -> tuple[str, typing.Any]:
    key, equals, text = argument[2:].partition("=")
    if not equals:
        raise UserError(f"{argument}: expected --key=value")
    value: typing.Any = text
    if TYPES.get(key) is not str:
        # What is no literal is left as text, and _typed says what was expected instead.
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = ast.literal_eval({"true": "True", "false": "False"}.get(text.lower(), text))
        # "de,zh" without brackets and quotation marks.
        if value == text and typing.get_origin(TYPES.get(key)) is tuple:
            value = tuple(part.strip() for part in text.split(",") if part.strip())
    return key, _typed(key, value, f"--{key}")


def _check(config: Config) -> None:
    """Raises UserError for values that no run can have."""
    c, languages = config, (config.pivot, *config.targets)
    for key, choices in CHOICES.items():
        if getattr(c, key) not in choices:
            raise UserError(f"{key} must be one of {', '.join(choices)}; found {getattr(c, key)!r}")
    numbers = {key: getattr(c, key) for key, kind in TYPES.items() if kind in (int, float)}
    for what, (is_right, keys) in RANGES.items():
        for key in keys.split() if keys else numbers:
            if not is_right(numbers[key]):
                raise UserError(f"{key} must be {what}, found {numbers[key]}")
    rules = [
        (c.max_steps > c.stage1_steps, f"max_steps ({c.max_steps}) must exceed stage1_steps ({c.stage1_steps}), which "
                                       "it counts; without a stage 1, set --stage1_steps=0"),
        (c.align_when != "last" or c.stage1_steps, "align_when=last aligns in the last stage1_steps steps: 0"),
        (c.n_embd % c.n_head == 0, f"n_embd ({c.n_embd}) must be a multiple of n_head ({c.n_head})"),
        (len(set(languages)) == len(languages), f"pivot and targets must be different languages, found {languages}"),
        # Names of languages, methods and folders are parts of file names.
        (all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", language) for language in languages),
         f"pivot and targets are named by letters, digits, hyphens and underscores, found {languages}"),
        (re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", c.method),
         f"method is the name of a folder (letters, digits, '.', '_', '-'), found {c.method!r}"),
        (c.method != c.stage1_method or c.init_from == "scratch" or c.pretrained,
         f"method: the folder named {c.method!r} is stage 1's; use another name"),
        (c.data_dir and c.out_dir, "data_dir and out_dir must name folders, found ''"),
        (len(set(c.fact_languages)) == len(c.fact_languages), "fact_languages names a language twice"),
        (all(0 <= weight < math.inf for weight in c.mix.values()) and sum(c.mix.values()) > 0,
         f"mix must give no language a weight below 0 and some language one above, found {c.mix}"),
        (all(tokens >= 1 for tokens in c.budget.values()), f"budget must be 1 token or more, found {c.budget}"),
        (all(0 <= share <= 1 for share in c.tokenizer_share.values()), "tokenizer_share must be between 0 and 1"),
        (not c.only or c.mix.get(c.only, 0) > 0, f"only must be a language that mix weighs, found {c.only!r}"),
        (not c.eval_text or "{language}" in c.eval_text or len(c.written) == 1,
         f"eval_text: expected {{language}} in it, as in \"texts/{{language}}\", found {c.eval_text!r}"),
        # A key in an argument would be kept in run.json and in the history of the shell.
        (re.fullmatch(r"[A-Z][A-Z0-9_]*", c.llm_key),
         "llm_key: expected the name of the environment variable that holds the key, as OPENAI_API_KEY, not the key"),
        (re.fullmatch(r"https?://[^\s@]+", c.llm_url), "llm_url: expected http(s)://... without a password"),
    ]
    for is_kept, message in rules:
        if not is_kept:
            raise UserError(message)
    for key, known in (("mix", languages), ("tokenizer_share", languages), ("budget", c.written),
                       ("fact_languages", languages)):
        for language in getattr(c, key):
            if language not in known:
                raise UserError(f"{key} names {language!r}, which is none of {', '.join(known)}")


def help_text() -> str:
    """Every knob with its default and the comment beside it in this file."""
    lines = []
    with open(__file__, encoding="utf-8") as f:
        source = f.read().split("class Config:")[1].split("@property")[0]
    for line in source.splitlines():
        if re.match(r"    # ", line):
            lines.append("\n" + line.strip(" #"))
        elif match := re.match(r"    (\w+): (.+?) = (.+?)(?:\s+# (.*))?$", line):
            name, kind, _, comment = match.groups()
            default = json.dumps(getattr(Config(), name))
            lines.append(f"  --{name}={default}  ({kind})" + (f"\n        {comment}" if comment else ""))
    return "\n".join(lines)


def load(arguments: list[str], usage: str = "") -> Config:
    """
    The config that config files and `--key=value` arguments make, checked.

    Raises UserError for an unknown knob (naming the closest), a wrong type (naming the one expected), a missing file
    or an impossible value. `--help` prints `usage` and every knob, and exits.
    """
    if "--help" in arguments or "-h" in arguments:
        print(f"{usage.strip()}\n{help_text()}")
        raise SystemExit(0)
    values: dict[str, typing.Any] = {}
    overrides = [a for a in arguments if a.startswith("--")]
    for path in (a for a in arguments if not a.startswith("--")):
        values |= _read_file(path)
    values |= dict(map(_read_override, overrides))
    config = Config(**values)
    _check(config)
    return config


def from_plain(plain: dict[str, typing.Any], where: str) -> Config:
    """The config of what `Config.plain` gave, or of a part of it. Raises UserError naming `where` it was read."""
    config = Config(**{key: _typed(key, value, where) for key, value in plain.items()})
    _check(config)
    return config
