"""
A trained model for other tools: a Hugging Face folder that AutoModelForCausalLM and AutoTokenizer load.

    pip install transformers
    python -m tools.export config/demo.py config/method/prealign.py        # -> out/demo/prealign/seed1/huggingface

GPT2LMHeadModel gives the same logits. The tokenizer is the pivot's, and that of every target that shares its
vocabulary; En-Clone's token t is t + V. README.md in the folder is the model card.
"""

import base64
import json
import os
import shutil
import tempfile

from corpus.folder import Folder
from eval import load_run
from model import GPT
from report.tables import report_tables
from runtime.config import Config, load
from runtime.errors import run_main
from runtime.files import is_newer, read_json, write_json, write_text
from runtime.gpt2 import gpt2_config, gpt2_weights


def write_model(model: GPT, end_of_text: int, folder: str) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel
    # No dropout, as it was trained here; GPT-2's own default for fine-tuning is 0.1.
    theirs = GPT2LMHeadModel(GPT2Config(**gpt2_config(model), bos_token_id=end_of_text, eos_token_id=end_of_text,
                                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    theirs.load_state_dict(gpt2_weights(model))
    theirs.save_pretrained(folder)


def write_tokenizer(data: Folder, block_size: int, folder: str) -> None:
    """tokenizer.json with the data's ids, by transformers' converter of tiktoken vocabularies, and how it is opened."""
    from transformers.convert_slow_tokenizer import TikTokenConverter
    ranks, end = data.encoding._mergeable_ranks, data.encoding.decode([data.end_of_text])
    # Some encodings have ids that stand for nothing before end-of-text: they get names, as ids are given out in order.
    special = [*(f"<|unused_{id_}|>" for id_ in range(len(ranks), data.end_of_text)), end]
    # The argument has one name in transformers 4 and another in 5, which take no notice of each other's.
    names = {"extra_special_tokens": special, "additional_special_tokens": special}
    with tempfile.NamedTemporaryFile() as f:
        f.writelines(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())
        f.flush()
        TikTokenConverter(f.name, data.encoding._pat_str, **names).converted().save(f"{folder}/tokenizer.json")
    # The class that transformers 4 and 5 both know, where save_pretrained of 5 names one that 4 does not.
    write_json(f"{folder}/tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size, "bos_token": end,
        "eos_token": end, "unk_token": end,
        # Decoding gives the text back as it was.
        "clean_up_tokenization_spaces": False,
        # Without token_type_ids, for which GPT2LMHeadModel would add word embeddings.
        "model_input_names": ["input_ids", "attention_mask"]})


def model_card(config: Config, data: Folder, state: dict) -> str:
    """Markdown: what the model is, what it was made from and how, and what was measured of it."""
    results, path = "", os.path.join(config.run_dir, "eval.json")
    # Of this model, and not of one that was here before.
    if is_newer(path, os.path.join(config.run_dir, "checkpoint.pt")):
        results = report_tables([read_json(path, "delete it and make it again with eval.py")])
    return (f"---\nlibrary_name: transformers\ntags: [prealign]\n---\n\n# {config.method}, seed {config.seed}\n\n"
            f"A GPT of {config.n_layer} layers x {config.n_embd}, trained with PreAlign's reference implementation on "
            f"{state['tokens']:,} tokens in {', '.join(data.languages)}; V = {data.V:,}."
            f"{' Token t of En-Clone is t + V.' if 'clone' in data.languages else ''}"
            f"\n\n```json\n{json.dumps(state['config'], indent=1)}\n```\n\n{results}\n")


def export(config: Config) -> str:
    """The path of the folder. Raises UserError when the run is not finished."""
    data, folder = Folder(config.data_dir), os.path.join(config.run_dir, "huggingface")
    model, state = load_run(config, data)
    # An earlier export is replaced when the new one is whole; what is half made goes.
    with tempfile.TemporaryDirectory(dir=config.run_dir) as beside:
        os.mkdir(new := f"{beside}/huggingface")
        write_model(model, data.end_of_text, new)
        write_tokenizer(data, config.block_size, new)
        write_text(f"{new}/README.md", model_card(config, data, state))
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(new, folder)
    return folder


def main(arguments: list[str]) -> None:
    print(export(load(arguments, __doc__)))


if __name__ == "__main__":
    run_main(main)
