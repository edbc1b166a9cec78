"""
A trained model for other tools: a Hugging Face folder that AutoModelForCausalLM and AutoTokenizer load.

    pip install transformers safetensors
    python -m tools.export config/demo.py config/method/prealign.py        # -> out/demo/prealign/seed1/huggingface

GPT2LMHeadModel gives the same logits. The tokenizer is the pivot's (and that of every
target that shares its vocabulary); En-Clone's token t is t + V. README.md in the folder is the model card.
"""

import base64
import json
import os

from runtime import config as configs
from runtime import errors
from runtime.config import Config
from runtime.errors import UserError
from corpus.folder import Folder
from eval import load_run
from runtime.files import is_newer, write_json, write_text
from runtime.gpt2 import gpt2_config, gpt2_weights
from report.results import read
from report.tables import report_tables


def write_tokenizer(data: Folder, folder: str) -> None:
    """tokenizer.json of the same encoding, by transformers' converter of tiktoken vocabularies."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    encoding = data.encoding
    end = encoding.decode([data.end_of_text])
    path = os.path.join(folder, "vocabulary.tiktoken")
    try:
        with open(path, "wb") as f:
            for token, rank in sorted(encoding._mergeable_ranks.items(), key=lambda item: item[1]):
                f.write(base64.b64encode(token) + b" " + str(rank).encode() + b"\n")
        # Some encodings have ids that stand for nothing before end-of-text: they get names, as ids are given out in order.
        unused = [f"<|unused_{id_}|>" for id_ in range(len(encoding._mergeable_ranks), data.end_of_text)]
        converter = TikTokenConverter(vocab_file=path, pattern=encoding._pat_str, extra_special_tokens=[*unused, end])
        fast = PreTrainedTokenizerFast(tokenizer_object=converter.converted(), bos_token=end, eos_token=end, unk_token=end, clean_up_tokenization_spaces=False)
    finally:
        if os.path.exists(path):
            os.remove(path)
    if fast.eos_token_id != data.end_of_text:
        raise UserError(f"the tokenizer of {data.dir} cannot be exported: end-of-text is {data.end_of_text} here and would be {fast.eos_token_id} there")
    fast.save_pretrained(folder)


def model_card(config: Config, data: Folder, state: dict, run_dir: str) -> str:
    """What the model is, what it was made from, how, and what was measured."""
    results, path = "", os.path.join(run_dir, "eval.json")
    if is_newer(path, os.path.join(run_dir, "checkpoint.pt")):  # of this model, and not of one that was here before
        results = "\n# Results\n\n" + report_tables(read(path, report_tables))
    method = []
    if config.init_from == "align":
        method.append(f"{config.stage1_steps:,} steps of multilingual alignment came first")
    elif config.init_from != "scratch":
        method.append(f"it began as {config.init_from}")
    if config.align_steps != "none":
        method.append(f"words were aligned during training ({config.align_steps})")
    if config.codeswitch_ratio > 0:
        method.append(f"{100 * config.codeswitch_ratio:g}% of {config.pivot}'s words with an entry were replaced by translations ({config.codeswitch_target})")
    languages = "".join(f"| {language} | {counts['tokens']:,} |\n" for language, counts in data.splits["train"].items())
    return f"""---
library_name: transformers
tags: [prealign]
---

# {config.method}, seed {config.seed}

A GPT of {config.n_layer} layers x {config.n_embd}, trained with PreAlign's reference implementation (method "{config.method}") on
{state['tokens']:,} tokens, {config.block_size} at a time; languages by share of the rows: {', '.join(f'{l} {w:g}' for l, w in config.mix.items())}.
Method: {'; '.join(method) or "language modelling alone"}.

## Data

Prepared from `{config.source}`, V = {data.V:,}{', En-Clone in ids V to 2V - 1' if 'clone' in data.languages else ''}:

| language | training tokens |
|---|---:|
{languages}
## Configuration

```json
{json.dumps(state['config'], indent=1)}
```
{results}"""


def export(config: Config) -> str:
    """Write the folder and return its path. Raises UserError when the run is unfinished or a package is missing."""
    try:
        from safetensors.torch import save_file
        import transformers  # noqa: F401
    except ImportError as e:
        raise UserError(f"to export a model, install {e.name}: pip install transformers safetensors") from e
    data = Folder(config.data_dir)
    model, state = load_run(config, data)
    folder = os.path.join(config.run_dir, "huggingface")
    os.makedirs(folder, exist_ok=True)
    save_file(gpt2_weights(model), os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    write_json(os.path.join(folder, "config.json"), gpt2_config(model, data.end_of_text))
    write_tokenizer(data, folder)
    write_text(os.path.join(folder, "README.md"), model_card(config, data, state, config.run_dir))
    return folder


def main(arguments: list[str]) -> None:
    print(export(configs.load(arguments, __doc__)))


if __name__ == "__main__":
    errors.run(main)
