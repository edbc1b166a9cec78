"""
Our weights and GPT-2's, as transformers names and stores them: a trained model for other tools, and theirs to begin with.

The architecture is the same, so that nothing is lost either way.
"""

import os

import torch

from runtime.errors import UserError
from runtime.files import read_json
from model import GPT

BLOCK = {"ln_1": "ln_1", "attention.qkv": "attn.c_attn", "attention.proj": "attn.c_proj", "ln_2": "ln_2", "mlp.fc": "mlp.c_fc", "mlp.proj": "mlp.c_proj"}


def gpt2_names(model: GPT) -> dict[str, str]:
    """Their name of each of our weights, by ours. Matrices of blocks stand the other way round there: (in, out)."""
    names = {"wte.weight": "transformer.wte.weight", "wpe.weight": "transformer.wpe.weight", "ln_f.weight": "transformer.ln_f.weight",
             "ln_f.bias": "transformer.ln_f.bias", "lm_head.weight": "lm_head.weight"}
    for block in range(len(model.blocks)):
        names |= {f"blocks.{block}.{ours}.{part}": f"transformer.h.{block}.{theirs}.{part}" for ours, theirs in BLOCK.items() for part in ("weight", "bias")}
    return names


def is_turned(name: str, value: torch.Tensor) -> bool:
    return name.startswith("blocks.") and value.dim() == 2


def is_tied(model: GPT) -> bool:
    return model.lm_head.weight is model.wte.weight


def gpt2_weights(model: GPT) -> dict[str, torch.Tensor]:
    """Our weights by GPT2LMHeadModel's names."""
    own = model.state_dict()
    return {theirs: (own[ours].T if is_turned(ours, own[ours]) else own[ours]).contiguous().clone()
            for ours, theirs in gpt2_names(model).items() if ours != "lm_head.weight" or not is_tied(model)}


def gpt2_config(model: GPT, end_of_text: int) -> dict:
    """config.json of a Hugging Face folder."""
    return {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": model.wte.num_embeddings, "n_positions": model.block_size,
        "n_embd": model.wte.embedding_dim, "n_layer": len(model.blocks), "n_head": model.n_head,
        "activation_function": "gelu_new", "layer_norm_epsilon": model.ln_f.eps, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        "tie_word_embeddings": is_tied(model), "bos_token_id": end_of_text, "eos_token_id": end_of_text, "torch_dtype": "float32"}


def read_weights(folder: str) -> dict[str, torch.Tensor]:
    """The weights in a Hugging Face folder, by names that begin as GPT2LMHeadModel's do. Runs no code from it."""
    safe, pickled = (os.path.join(folder, name) for name in ("model.safetensors", "pytorch_model.bin"))
    try:
        if os.path.exists(safe):
            from safetensors.torch import load_file

            found = load_file(safe)
        else:
            found = torch.load(pickled, map_location="cpu", weights_only=True)
        return {name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": value for name, value in found.items()}
    except FileNotFoundError as e:
        raise UserError(f"{folder}: expected model.safetensors or pytorch_model.bin in one piece, found neither") from e
    except ImportError as e:
        raise UserError(f"to read {safe}, install safetensors: pip install safetensors") from e
    except Exception as e:  # safetensors and torch.load raise what their readers raise
        raise UserError(f"{safe if os.path.exists(safe) else pickled}: not a whole file of weights ({type(e).__name__})") from e


@torch.no_grad()
def load_gpt2(model: GPT, folder: str, V: int) -> None:
    """
    Begin with the weights of a GPT-2 model in a Hugging Face folder, whose tokenizer has V ids or, when it was exported from here,
    as many as the model. The first V embeddings are then its own; En-Clone's stay as they are. Longer position tables are cut.

    Raises UserError when it is no GPT-2 model, or one of another shape.
    """
    path = os.path.join(folder, "config.json")
    try:
        theirs = read_json(path, "expected a Hugging Face folder")
    except OSError as e:
        raise UserError(f"init_from=hf:{folder}: cannot read {path} ({e.strerror}); expected a Hugging Face folder on this machine") from e
    if not isinstance(theirs, dict) or theirs.get("model_type") != "gpt2":
        raise UserError(f"{path}: expected model_type gpt2, found {(theirs.get('model_type') if isinstance(theirs, dict) else theirs)!r}")
    plain = {"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "layer_norm_epsilon": (model.ln_f.eps,), "scale_attn_weights": (True,),
             "scale_attn_by_inverse_layer_idx": (False,), "n_inner": (None, 4 * model.wte.embedding_dim)}
    for key, values in plain.items():
        if theirs.get(key, values[0]) not in values:
            raise UserError(f"{path}: {key} is {theirs[key]!r}, which model.py does not compute; expected {values[0]!r}")
    ours = gpt2_config(model, 0)
    different = [f"--{key}={theirs.get(key)} (here {ours[key]})" for key in ("n_layer", "n_head", "n_embd") if theirs.get(key) != ours[key]]
    if not theirs.get("tie_word_embeddings", True) and is_tied(model):
        different.append("--tie_embeddings=false (here true)")
    if different:
        raise UserError(f"init_from=hf:{folder} has another shape than the config; use {' '.join(different)}")
    rows = theirs.get("vocab_size")
    if rows not in (V, model.wte.num_embeddings):
        raise UserError(f"init_from=hf:{folder}: its vocabulary has {rows} ids, that of the data {V}; prepare the data with its tokenizer (--tokenizer=gpt2 for GPT-2's)")
    positions = theirs.get("n_positions")
    if type(rows) is not int or type(positions) is not int:
        raise UserError(f"{path}: vocab_size and n_positions must be whole numbers, found {rows!r} and {positions!r}")
    if positions < model.block_size:
        raise UserError(f"init_from=hf:{folder}: it has {positions} positions; use --block_size={positions} or less")

    found, own = read_weights(folder), model.state_dict()
    for mine, name in gpt2_names(model).items():
        value = found.get("transformer.wte.weight" if mine == "lm_head.weight" and name not in found else name)
        if value is None:
            raise UserError(f"{folder}: its weights lack {name}")
        if not isinstance(value, torch.Tensor) or not value.isfinite().all():
            raise UserError(f"{folder}: {name} is not an array of finite numbers")
        value = value.T if is_turned(mine, value) else value
        here = {"wpe.weight": model.block_size, "wte.weight": rows, "lm_head.weight": rows}.get(mine, own[mine].shape[0])
        there = positions if mine == "wpe.weight" else here
        if value.shape != (there, *own[mine].shape[1:]):
            raise UserError(f"{folder}: {name} has shape {tuple(value.shape)}, expected {(there, *own[mine].shape[1:])}")
        own[mine][:here] = value[:here]
