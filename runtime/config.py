"""
Every knob of an experiment, in one dataclass, and the grammar that sets them:

    python train.py config/demo.py config/method/prealign.py --learning_rate=3e-4
    python train.py --help                      # every knob, its default and what it does

Config files are Python assignments (`learning_rate = 1e-3`), read in the order given; then `--key=value`; later wins.
"""

import ast
import contextlib
import dataclasses
import json
import math
import os
import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args, get_origin

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
    budget: dict[str, float] = field(default_factory=dict)  # training tokens, {"en": 10e9}; not named: all
    dictionary: str = ""                # of targets but En-Clone, as "dictionaries/en-{language}.txt"
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
    fact_objects: Literal["prose", "software"] = "prose"  # nouns that such text has often, as objects (tasks/facts.py)
    fact_languages: tuple[str, ...] = ("en",)  # in which they are stated, dealt out in turn
    fact_periods: int = 1               # parts of stage 2, each of which states facts of its own (Fig. 4)

    # batches
    mix: dict[str, float] = field(default_factory=lambda: {"en": 0.95, "clone": 0.05})  # share of rows per language
    only: str = ""                      # train on this language's rows alone, over and over; "" = on all
    batch_size: int = 16                # rows per step, over all processes
    micro_batch_size: int = 16          # rows per forward pass and process; the rest is gradient accumulation
    block_size: int = 256               # tokens per row
    codeswitch_ratio: float = 0.05      # share of the pivot's aligned words replaced by a translation
    codeswitch_facts: bool = False      # in statements of facts too: CLKA then is of facts partly read in the target
    codeswitch_target: Literal["input-only", "vanilla", "original"] = "input-only"  # Eq. 6, Eq. 5, the replaced word

    # model
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    tie_embeddings: bool = True         # one matrix for input and output embeddings
    init_std: float = 0.02              # of weight matrices at initialisation
    embedding_init_std: float = 0.02    # of token embeddings; larger ones turn more slowly and stay aligned longer
    init_from: str = "scratch"          # or "align" (stage 1), "golden", "hf:FOLDER" (a GPT-2 of Hugging Face's)

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
    align_when: Literal["none", "all", "last"] = "none"  # steps of train.py that align: "all" on the fly, "last" post
    align_entries: int = 512            # table entries per step, over all processes
    align_tau: float = 0.1              # temperature of the contrastive loss (Eq. 2)
    align_power: float = 0.5            # entries are drawn by frequency ** align_power
    align_coverage: float = 1.0         # share of the table's entries that is used, the most frequent ones (Table 5)

    # running
    device: Literal["auto", "cpu", "cuda"] = "auto"  # "auto": a GPU, if any; CUDA_VISIBLE_DEVICES says which
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"  # "auto": bf16 where the hardware has it, else fp32
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; "auto": on CUDA
    log_interval: int = 20              # steps
    checkpoint_interval: int = 250      # steps
    wandb: str = ""                     # project of Weights & Biases to log to; "" = none
    snapshot_interval: int = 0          # steps between copies of the weights kept for tools.dynamics; 0 = none

    # evaluation
    eval_interval: int = 250            # steps between losses of held-out text while training; 0 = none
    eval_tokens: int = 200_000          # held-out tokens per language; 0 = all
    eval_text: str = ""                 # other text to measure perplexity on, "xquad/{language}.txt"; "" = none
    eval_batch_size: int = 32           # rows
    eval_words: int = 2000              # table entries whose similarity is measured
    sample_count: int = 200             # continuations sampled to see whether languages mix (Table 4)
    sample_tokens: int = 32             # tokens of each
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
        """The config of stage 1's own run."""
        # The knobs of stage 2 are at their defaults, so that one stage 1 serves every method.
        return replace(self, method=self.stage1_method, init_from=self.init_from if self.pretrained else "scratch",
                       align_when="all", codeswitch_ratio=0.0, codeswitch_facts=Config.codeswitch_facts,
                       codeswitch_target=Config.codeswitch_target, only="")

    def plain(self) -> dict:
        """As JSON would give it back (tuples are lists): what is stored, and compared with what was stored."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


FIELDS: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(Config)}
# All numbers are finite and not negative. These are not 0 either,
POSITIVE = """vocab_size batch_size micro_batch_size block_size n_layer n_head n_embd init_std embedding_init_std
    max_steps learning_rate align_entries align_tau align_coverage log_interval checkpoint_interval eval_batch_size
    eval_words sample_count sample_tokens fact_periods nli_builtin nli_epochs nli_batch_size
    nli_learning_rate nli_seeds""".split()
# and these are not above 1.
SHARES = "codeswitch_ratio warmup_ratio min_learning_rate_ratio align_coverage val_fraction beta1 beta2".split()
# What Python raises for text that is no literal, or one too deep or too large to read.
NO_LITERAL = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)


def _convert(kind: Any, value: Any) -> Any:
    """`value` as a `kind`. Raises TypeError when it is none, OverflowError when it is too large for one."""
    if get_origin(kind) is tuple:
        # "de,zh", or one item alone.
        items = value.split(",") if isinstance(value, str) else value if isinstance(value, (tuple, list)) else [value]
        if len(items) > 0:
            return tuple(_convert(get_args(kind)[0], item) for item in items)
    # Shares, or numbers of tokens, by language.
    elif get_origin(kind) is dict and isinstance(value, dict):
        return {_convert(str, key): _convert(float, number) for key, number in value.items()}
    elif kind is float and type(value) is int:
        return float(value)
    # No bool is an int here; a Literal has its choices as arguments.
    elif type(value) is kind or value in get_args(kind):
        return value
    raise TypeError


def _typed(key: str, value: Any, where: str) -> Any:
    """`value` as the type of knob `key`. Raises UserError that names the type expected and the value found."""
    if key not in FIELDS:
        raise UserError(f"{where}: there is no knob named {key!r}; --help lists all")
    try:
        return _convert(FIELDS[key], value)
    except (TypeError, OverflowError) as e:
        # "int", "tuple[str, ...]", "Literal['none', 'all']".
        kind = FIELDS[key].__name__ if isinstance(FIELDS[key], type) else str(FIELDS[key]).removeprefix("typing.")
        raise UserError(f"{where}: {key} must be {kind}, found {value!r}") from e


def _read_file(path: str) -> dict[str, Any]:
    """The assignments of a config file. Literals only, so that reading a config never runs code."""
    values, line = {}, 1
    with open(path, encoding="utf-8") as f:
        try:
            for node in ast.parse(f.read()).body:
                # Should this one be none, the error says where it stands.
                line = node.lineno
                match node:
                    case ast.Assign(targets=[ast.Name(id=key)]):
                        values[key] = _typed(key, ast.literal_eval(node.value), f"{path}:{line}")
                    case ast.Expr(value=ast.Constant()):
                        # A docstring.
                        pass
                    case _:
                        raise ValueError("no assignment")
        except NO_LITERAL as e:
            line = getattr(e, "lineno", None) or line
            raise UserError(f"{path}:{line}: expected `knob = value` with a plain value, as `seed = 2`") from e
    return values


def _read_override(argument: str) -> tuple[str, Any]:
    """Knob and value of `--key=value`."""
    key, equals, text = argument[2:].partition("=")
    if not equals:
        raise UserError(f"{argument}: expected --key=value")
    value: Any = text
    if FIELDS.get(key) is not str:
        # Text that is no literal stays as it is: a name, or what _typed refuses.
        with contextlib.suppress(*NO_LITERAL):
            value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    return key, _typed(key, value, f"--{key}")


def _checked(c: Config) -> Config:
    """The config itself. Raises UserError for values that no run can have."""
    for key, value in vars(c).items():
        if isinstance(value, (int, float)) and not 0 <= value < math.inf:
            raise UserError(f"{key} must be finite and not negative, found {value}")
        if (key in POSITIVE and value == 0) or (key in SHARES and value > 1):
            raise UserError(f"{key} must be {'greater than 0' if value == 0 else 'at most 1'}, found {value}")
    languages = (c.pivot, *c.targets)
    # A language's name misspelt would else have no effect.
    for key in ("mix", "fact_languages", "tokenizer_share", "budget"):
        # En-Clone has no text of its own to train a vocabulary on, or to stop at a budget.
        known = languages if key in ("mix", "fact_languages") else c.written
        for language in getattr(c, key):
            if language not in known:
                raise UserError(f"{key} names {language!r}, not one of pivot and targets: {', '.join(known)}")
    # Names of languages and methods are parts of file names.
    name, folder = re.compile("[A-Za-z][A-Za-z0-9_-]*"), re.compile("[A-Za-z0-9_-][A-Za-z0-9._-]*")
    # What joins several knobs: their names, whether it is kept, and what it is.
    rules = [
        ("max_steps stage1_steps", c.max_steps > c.stage1_steps, "max_steps counts stage1_steps, and must be more"),
        ("align_when stage1_steps", c.align_when != "last" or c.stage1_steps, "the last stage1_steps steps align"),
        ("tokenizer vocab_size", c.tokenizer != "train" or c.vocab_size > 256, "a trained vocabulary has at least 257"),
        ("n_embd n_head", c.n_embd % c.n_head == 0, "n_embd must be a multiple of n_head"),
        ("pivot targets", all(map(name.fullmatch, languages)) and len(set(languages)) == len(languages),
         "expected different names of letters, digits, hyphens and _"),
        ("method", folder.fullmatch(c.method), "expected a folder's name of letters, digits, dots, hyphens and _"),
        ("method init_from", c.method != c.stage1_method or c.init_from == "scratch" or c.pretrained,
         "the folder of this name is stage 1's; use another method name"),
        ("init_from", c.init_from in ("scratch", "align", "golden") or c.pretrained,
         "expected scratch, align, golden or hf:FOLDER"),
        ("mix", min(c.mix.values(), default=-1) >= 0 < sum(c.mix.values()), "expected weights, not all of them 0"),
        ("only mix", not c.only or c.mix.get(c.only, 0) > 0, "only must be a language that mix weighs"),
        ("eval_tokens", c.eval_tokens != 1, "the first token is not predicted: expected 2 or more, or 0 for all"),
        ("eval_text", not c.eval_text or "{language}" in c.eval_text or len(c.written) == 1, "without {language}"),
    ]
    for keys, is_kept, message in rules:
        if not is_kept:
            raise UserError(f"{', '.join(f'{key}={getattr(c, key)!r}' for key in keys.split())}: {message}")
    return c


def load(arguments: list[str], usage: str = "") -> Config:
    """
    The config that config files and `--key=value` arguments make. Raises UserError for what is no knob or value of
    one. `--help` prints `usage` and the knobs as they stand in this file, and exits.
    """
    if "--help" in arguments or "-h" in arguments:
        with open(__file__, encoding="utf-8") as f:
            print(usage.strip(), f.read().split("class Config:")[1].split("@property")[0].rstrip(), sep="\n")
        raise SystemExit(0)
    # Later ones win, arguments over files.
    values: dict[str, Any] = {}
    for path in (a for a in arguments if not a.startswith("--")):
        values |= _read_file(path)
    values |= dict(_read_override(a) for a in arguments if a.startswith("--"))
    return _checked(Config(**values))


def from_plain(plain: dict[str, Any], where: str) -> Config:
    """The config of what `Config.plain` gave, or of a part of it. Raises UserError naming `where` it was read."""
    # What an earlier version wrote may have knobs that are gone.
    return _checked(Config(**{key: _typed(key, value, where) for key, value in plain.items() if key in FIELDS}))
