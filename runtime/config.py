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
from dataclasses import dataclass, field, replace

from runtime.errors import UserError


@dataclass(frozen=True)
class Config:
    # where things are
    data_dir: str = "data/demo"         # made by data.py, read by everything else
    out_dir: str = "out/demo"           # runs go to OUT_DIR/METHOD/seedSEED
    method: str = "joint"               # name of the run's folder and of its row in the report
    seed: int = 1                       # of weights, row order, codeswitching and word sampling

    # data
    source: str = "builtin"             # "builtin", or a file, folder or glob of .txt/.jsonl (.gz, .xz, .zst) or .parquet; "texts/{language}" = one for each language
    pivot: str = "en"                   # the language most of the data is in
    targets: tuple[str, ...] = ("clone",)  # languages to transfer to; "clone" is En-Clone (ids + V)
    budget: dict[str, float] = field(default_factory=dict)  # training tokens to make of each language's text, {"en": "10B", "de": 1e8}; not named = all there are
    shard_seed: int = 0                 # of the order of the text's files; 0 = by name
    dictionary: str = ""                # "dictionaries/en-{language}.txt": MUSE files or the like, for the targets that are not En-Clone
    dictionary_target_first: bool = False  # its translations stand before the pivot's words
    dictionary_identical: bool = False  # keep pairs of the same word twice, which are mostly names
    dictionary_translations: int = 5    # of a word at most, those most common in the target's text (0: all)
    translation_tokens: int = 0         # translations of more tokens are left out of the table (0: none is); En-Clone's words are kept
    dictionary_bad_lines: int = 10      # lines that are no pairs, told and left out, before it is refused
    table: str = ""                     # a table.tsv that data.py made, edited: used in place of dictionaries
    tokenizer: str = "train"            # "train" a BPE vocabulary on the corpus, or a tiktoken name (gpt2, o200k_base)
    vocab_size: int = 2048              # V, end-of-text included, when the tokenizer is trained
    tokenizer_share: dict[str, float] = field(default_factory=dict)  # share of a language's documents that it is trained on; not named = all
    min_count: int = 20                 # a word must be seen more often than this to enter the alignment table
    val_fraction: float = 0.02          # share of the text held out, by whole documents
    workers: int = 0                    # processes of data.py; 0 = one per core. The result does not depend on it
    fact_count: int = 128               # CLKA facts stated in the pivot's training data; 0 = none
    fact_frequencies: tuple[int, ...] = (40,)  # how often each is stated; several values are dealt out in turn
    fact_languages: tuple[str, ...] = ("en",)  # in which they are stated, dealt out in turn
    fact_periods: int = 1               # parts of stage 2, each of which states facts of its own (Fig. 4)

    # batches
    mix: dict[str, float] = field(default_factory=lambda: {"en": 0.95, "clone": 0.05})  # share of rows per language
    only: str = ""                      # train on this language alone, on the rows that joint training has in it, over and over; "" = on all
    batch_size: int = 16                # rows per step, over all processes
    micro_batch_size: int = 16          # rows per forward pass and process; the rest is gradient accumulation
    block_size: int = 256               # tokens per row
    codeswitch_ratio: float = 0.05      # share of the pivot's aligned words replaced by a translation
    codeswitch_target: str = "input-only"  # "input-only" (Eq. 6), "vanilla" (Eq. 5) or "original" (first subword of the replaced word)

    # model
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    tie_embeddings: bool = True         # one matrix for input and output embeddings
    init_std: float = 0.02              # of weight matrices at initialisation
    embedding_init_std: float = 0.02    # of token embeddings; larger ones turn more slowly and keep their alignment longer
    init_from: str = "scratch"          # or "align" (stage 1), "golden" (En-Clone begins as English), "hf:FOLDER" (GPT-2's weights), a method in out_dir or a run's folder

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
    align_steps: str = "none"           # of train.py that have it: "none" (stage 1 has had it), "all" (on the fly) or "last" (post: the last stage1_steps)
    align_entries: int = 512            # table entries per step, over all processes
    align_tau: float = 0.1              # temperature of the contrastive loss (Eq. 3)
    align_power: float = 0.5            # entries are drawn by frequency ** align_power
    align_coverage: float = 1.0         # share of the table's entries that is used, the most frequent ones (Table 5)

    # running
    device: str = "auto"                # "auto", "cpu", "cuda" or "cuda:N"
    dtype: str = "auto"                 # "auto" (bf16 where the hardware multiplies it, else fp32), "bf16", "fp16", "fp32"
    compile: str = "auto"               # torch.compile: "auto" (on CUDA), "on" or "off"
    log_interval: int = 20              # steps
    checkpoint_interval: int = 250      # steps
    max_skipped_steps: int = 0          # steps with a gradient that is not finite that are skipped before the run stops
    wandb: str = ""                     # project of Weights & Biases to log to; "" = none
    tensorboard: bool = False           # log to OUT_DIR/METHOD/seedSEED/tensorboard
    snapshot_interval: int = 0          # steps between copies of the weights that are kept for eval.py dynamics; 0 = none

    # evaluation
    eval_tokens: int = 200_000          # held-out tokens per language; 0 = all
    eval_text: str = ""                 # other text to measure perplexity on, "xquad/{language}.txt": a file, folder or pattern for each language; "" = none
    eval_batch_size: int = 32           # rows
    eval_words: int = 2000              # table entries whose similarity is measured
    sample_count: int = 200             # continuations sampled to see whether languages mix (Table 4)
    sample_prompt: int = 16             # tokens of held-out English before each
    sample_tokens: int = 32             # tokens of each
    sample_temperature: float = 1.0
    prompt: str = ""                    # eval.py sample goes on from this text

    # zero-shot transfer (eval.py xnli)
    nli_train: str = "builtin"          # English pairs: "builtin", or a file: XNLI, MultiNLI, SNLI, SICK or PAWS-X as published
    nli_dev: str = "builtin"            # English pairs that choose the epoch
    nli_test: str = "builtin"           # pairs in every language
    nli_builtin: int = 2500             # hypotheses of the built-in training pairs, three pairs each; a tenth for dev and for test
    nli_epochs: int = 3
    nli_batch_size: int = 32
    nli_learning_rate: float = 5e-4
    nli_seeds: int = 1                  # fine-tunings, each with a seed of its own

    # a dictionary from a language model (translate.py)
    llm_url: str = "https://api.openai.com/v1"  # of an OpenAI-compatible endpoint
    llm_model: str = "gpt-4o-mini"
    llm_key: str = "OPENAI_API_KEY"     # the environment variable that holds the key
    llm_translations: int = 5           # per word, at most
    llm_words: int = 20                 # per request
    llm_requests: int = 8               # at a time
    llm_timeout: float = 120.0          # seconds
    llm_backoff: float = 1.0            # seconds of the first pause after a failure; it doubles
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
                       align_steps="all", codeswitch_ratio=0.0, codeswitch_target=Config.codeswitch_target, only="")

    def plain(self) -> dict:
        """As JSON would give it back (tuples are lists): what is stored, and compared with what was stored."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


CHOICES = {
    "codeswitch_target": ("input-only", "vanilla", "original"),
    "align_steps": ("none", "all", "last"),
    "dtype": ("auto", "bf16", "fp16", "fp32"),
    "compile": ("auto", "on", "off"),
}
POSITIVE = ("vocab_size", "batch_size", "micro_batch_size", "block_size", "n_layer", "n_head", "n_embd", "max_steps",
            "learning_rate", "align_entries", "align_tau", "align_coverage", "init_std", "embedding_init_std",
            "log_interval", "checkpoint_interval", "eval_batch_size", "eval_words", "sample_count", "sample_prompt", "sample_tokens",
            "sample_temperature", "fact_periods", "nli_builtin", "nli_epochs", "nli_batch_size", "nli_learning_rate", "nli_seeds",
            "llm_translations", "llm_words", "llm_requests", "llm_timeout")
NOT_NEGATIVE = ("min_count", "workers", "fact_count", "snapshot_interval", "weight_decay", "grad_clip", "stage1_steps",
                "align_weight", "align_power", "eval_tokens", "shard_seed", "max_skipped_steps", "dictionary_translations",
                "translation_tokens", "dictionary_bad_lines", "llm_backoff", "llm_price_in", "llm_price_out")
FIELDS = {f.name: f for f in dataclasses.fields(Config)}
TYPES = typing.get_type_hints(Config)


def _count(value: typing.Any) -> typing.Any:
    """A number written as "1.5k", "100M" or "10B"; anything else as it is."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMB])", value) if isinstance(value, str) else None
    return float(match[1]) * {"k": 1e3, "M": 1e6, "B": 1e9}[match[2]] if match else value


def _typed(key: str, value: typing.Any, where: str) -> typing.Any:
    """`value` as the type of knob `key`, or a UserError that names the type expected and what was found."""
    if key not in FIELDS:
        close = difflib.get_close_matches(key, FIELDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else "; --help lists every knob"
        raise UserError(f"{where}: there is no knob named {key!r}{hint}")
    expected = TYPES[key]
    good = False
    if expected is float and type(value) is int and abs(value) < 2**1000:
        value, good = float(value), True
    elif expected in (int, float, bool, str):
        good = type(value) is expected
    elif expected == tuple[str, ...] or expected == tuple[int, ...]:
        item = str if expected == tuple[str, ...] else int
        if type(value) is item:
            value = (value,)
        good = isinstance(value, (tuple, list)) and len(value) > 0 and all(type(v) is item for v in value)
        value = tuple(value) if good else value
    elif expected == dict[str, float]:
        if key == "budget" and isinstance(value, dict):
            value = {k: _count(v) for k, v in value.items()}
        good = isinstance(value, dict) and (len(value) > 0 or key != "mix") and all(
            isinstance(k, str) and type(v) in (int, float) for k, v in value.items())
        value = {k: float(v) for k, v in value.items()} if good else value
    if not good:
        name = expected.__name__ if isinstance(expected, type) and not typing.get_args(expected) else str(expected)
        raise UserError(f"{where}: {key} must be of type {name}, found {value!r}")
    return value


def _read_file(path: str) -> dict[str, typing.Any]:
    """The assignments of a config file. Literals only, so that reading a config never runs code."""
    try:
        with open(path, encoding="utf-8") as f:
            source = f.read()
        tree = ast.parse(source, filename=path)
    except OSError as e:
        raise UserError(f"cannot read config file {path}: {e.strerror}; the ones that come with the project are in config/") from e
    except (SyntaxError, ValueError, MemoryError, RecursionError) as e:
        raise UserError(f"{path}:{getattr(e, 'lineno', None) or 1}: not a config file ({getattr(e, 'msg', e)}); expected lines like `learning_rate = 1e-3`") from e

    def written(node: ast.AST) -> str:
        return (ast.get_source_segment(source, node) or "").partition("\n")[0][:200]

    values: dict[str, object] = {}
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        where = f"{path}:{node.lineno}"
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
            raise UserError(f"{where}: expected `knob = value`, found {written(node)!r}")
        try:
            value = ast.literal_eval(node.value)
        except (ValueError, TypeError, MemoryError, RecursionError) as e:
            raise UserError(f"{where}: {node.targets[0].id} must be a plain value, found {written(node.value)!r}") from e
        values[node.targets[0].id] = _typed(node.targets[0].id, value, where)
    return values


def _read_override(argument: str) -> tuple[str, typing.Any]:
    key, equals, text = argument[2:].partition("=")
    if not equals:
        raise UserError(f"{argument}: expected --key=value")
    expected = TYPES.get(key)
    value: typing.Any = text
    if expected is bool and text.lower() in ("true", "false"):
        value = text.lower() == "true"
    elif expected in (tuple[str, ...], tuple[int, ...]) and not text.startswith(("(", "[")):
        items = [part.strip() for part in text.split(",") if part.strip()]
        if expected == tuple[int, ...] and not all(re.fullmatch(r"-?\d+", item) for item in items):
            raise UserError(f"--{key}: expected whole numbers separated by commas, found {text!r}")
        value = tuple(int(item) for item in items) if expected == tuple[int, ...] else tuple(items)
    elif expected is not str:
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # then _typed says what was expected instead
            value = ast.literal_eval(text)
    return key, _typed(key, value, f"--{key}")


def _check(config: Config) -> None:
    for key, choices in CHOICES.items():
        if getattr(config, key) not in choices:
            raise UserError(f"{key} must be one of {', '.join(choices)}; found {getattr(config, key)!r}")
    for key, kind in TYPES.items():
        if kind is float and not math.isfinite(getattr(config, key)):
            raise UserError(f"{key} must be finite, found {getattr(config, key)}")
    for key in POSITIVE:
        if not getattr(config, key) > 0:
            raise UserError(f"{key} must be greater than 0, found {getattr(config, key)}")
    for key in NOT_NEGATIVE:
        if not getattr(config, key) >= 0:
            raise UserError(f"{key} must not be negative, found {getattr(config, key)}")
    for key, low, high in (("codeswitch_ratio", 0, 1), ("val_fraction", 0, 1), ("warmup_ratio", 0, 1), ("min_learning_rate_ratio", 0, 1), ("align_coverage", 0, 1),
                           ("seed", 0, 2**63 - 1)):
        if not low <= getattr(config, key) <= high:
            raise UserError(f"{key} must be between {low} and {high}, found {getattr(config, key)}")
    for key in ("beta1", "beta2"):
        if not 0 <= getattr(config, key) < 1:
            raise UserError(f"{key} must be at least 0 and less than 1, found {getattr(config, key)}")
    for key in ("data_dir", "out_dir"):
        if not getattr(config, key):
            raise UserError(f"{key} must name a folder, found ''")
    if config.max_steps <= config.stage1_steps:
        raise UserError(f"max_steps ({config.max_steps}) must exceed stage1_steps ({config.stage1_steps}): it counts them, and facts are stated after "
                        "them in every method; without a stage 1, set --stage1_steps=0")
    if config.align_steps == "last" and config.stage1_steps == 0:
        raise UserError("align_steps=last aligns in the last stage1_steps steps, and stage1_steps is 0")
    if config.n_embd % config.n_head:
        raise UserError(f"n_embd ({config.n_embd}) must be a multiple of n_head ({config.n_head})")
    languages = (config.pivot, *config.targets)
    if len(set(languages)) != len(languages):
        raise UserError(f"pivot and targets must be different languages, found {', '.join(languages)}")
    for language in languages:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", language):
            raise UserError(f"language names are letters, digits and hyphens, found {language!r}")
    for language in config.fact_languages:
        if language not in languages or config.fact_languages.count(language) > 1:
            raise UserError(f"fact_languages are the pivot and targets, each at most once, found {', '.join(config.fact_languages)}")
    for language, weight in config.mix.items():
        if language not in languages:
            raise UserError(f"mix names {language!r}, which is neither the pivot nor a target ({', '.join(languages)})")
        if not 0 <= weight < math.inf:
            raise UserError(f"mix: the weight of {language} must not be negative, found {weight}")
    for language, tokens in config.budget.items():
        if language not in config.written or not tokens >= 1:
            raise UserError(f"budget gives languages that have text a number of tokens, found {language!r}: {tokens}")
    for language, share in config.tokenizer_share.items():
        if language not in languages or not 0 <= share <= 1:
            raise UserError(f"tokenizer_share gives the pivot and targets shares between 0 and 1, found {language!r}: {share}")
    if not sum(config.mix.values()) > 0:
        raise UserError(f"mix: some language needs a weight above 0, found {config.mix}")
    if config.only and not config.mix.get(config.only, 0) > 0:
        raise UserError(f"only must be a language that mix gives a weight, found {config.only!r}")
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", config.method):
        raise UserError(f"method is the name of a folder (letters, digits, '.', '_', '-'), found {config.method!r}")
    if config.eval_text and "{language}" not in config.eval_text and len(config.written) > 1:
        raise UserError(f"eval_text: every language needs text of its own: expected {{language}} in it, as in \"texts/{{language}}\", found {config.eval_text!r}")
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", config.llm_key):
        raise UserError("llm_key: expected the name of an environment variable in capitals, as OPENAI_API_KEY; the key itself stands in no argument, as arguments are kept")
    if not re.fullmatch(r"https?://[^\s@]+", config.llm_url):
        raise UserError("llm_url: expected http://... or https://... without a password; a key is read from the environment variable that llm_key names")
    if config.method == config.stage1_method and config.init_from != "scratch" and not config.pretrained:
        raise UserError(f"method: the folder named {config.method!r} is stage 1's; use another name")


def help_text() -> str:
    """Every knob with its default and the comment beside it in this file."""
    lines = []
    for line in open(__file__, encoding="utf-8").read().split("class Config:")[1].split("@property")[0].splitlines():
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
    """The config that `Config.plain` gave, or a part of it, read back. Raises UserError, naming `where` it was read, for what is none of this version."""
    if not isinstance(plain, dict) or not all(isinstance(key, str) for key in plain):
        raise UserError(f"{where}: expected a config, found {type(plain).__name__}")
    config = Config(**{key: _typed(key, value, where) for key, value in plain.items()})
    _check(config)
    return config
