"""Our weights by GPT-2's names in transformers, of the same architecture: a model for other tools, or from them."""

from typing import Any

import torch

from model import GPT
from runtime.errors import UserError
from runtime.files import read_json

# Parts of names, ours and theirs.
NAMES = {"blocks.": "h.", "attention.qkv": "attn.c_attn", "attention.proj": "attn.c_proj", "mlp.": "mlp.c_"}


def gpt2_weights(model: GPT) -> dict[str, torch.Tensor]:
    """The weights by GPT2LMHeadModel's names, as views: what is copied into them is in the model."""
    weights = {}
    for name, value in model.state_dict().items():
        # Its blocks have their matrices the other way round: (in, out).
        value = value.T if name.startswith("blocks.") and value.dim() == 2 else value
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        weights[name if name == "lm_head.weight" else f"transformer.{name}"] = value
    return weights


def gpt2_config(model: GPT) -> dict:
    """What transformers' GPT2Config has to say of a model that computes the same."""
    return {"model_type": "gpt2", "n_embd": model.wte.embedding_dim, "n_layer": len(model.blocks),
            "n_head": model.n_head, "vocab_size": model.wte.num_embeddings, "n_positions": model.block_size,
            "tie_word_embeddings": model.lm_head.weight is model.wte.weight,
            # What a folder of another kind of GPT-2 says otherwise.
            "n_inner": 4 * model.wte.embedding_dim, "activation_function": "gelu_new",
            "layer_norm_epsilon": model.ln_f.eps, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}


@torch.no_grad()
def load_gpt2(model: GPT, folder: str, V: int) -> None:
    """Begin with the GPT-2 in a Hugging Face folder. En-Clone's embeddings stay, unless an export has them too."""
    from transformers import GPT2Config, GPT2LMHeadModel
    # It may have rows that pad its vocabulary, longer texts, and tied embeddings where here are two.
    ours, larger = gpt2_config(model) | {"vocab_size": V}, ("vocab_size", "n_positions", "tie_word_embeddings")
    try:
        theirs = GPT2Config().to_dict() | read_json(f"{folder}/config.json", "expected a Hugging Face folder")
        theirs["n_inner"] = theirs["n_inner"] or ours["n_inner"]
        for key, value in ours.items():
            fits = theirs[key] >= value if key in larger else theirs[key] == value
            # So many rows more are neither padding nor En-Clone's: the tokenizer is another one.
            if not fits or key == "vocab_size" and V + 1024 <= theirs[key] != 2 * V:
                raise ValueError(f"{key}={theirs[key]!r} (here {value!r})")
        # A config of our own, as other keys of theirs could ask transformers for other code.
        config = GPT2Config(**ours | {key: theirs[key] for key in larger})
        from_pretrained: Any = GPT2LMHeadModel.from_pretrained
        source, info = from_pretrained(folder, config=config, local_files_only=True, weights_only=True,
                                       output_loading_info=True)
        weights = source.float().state_dict()
        if info["missing_keys"]:
            raise ValueError(f"weights are missing: {sorted(info['missing_keys'])}")
    except Exception as e:
        # transformers raises whatever its readers of files raise.
        raise UserError(f"init_from=hf:{folder}: expected a GPT-2 of the config's shape with the data's tokenizer; "
                        f"found {type(e).__name__}: {' '.join(str(e).split())[:150]}") from e
    # The model is changed when all is read.
    for name, view in gpt2_weights(model).items():
        n = V if name.endswith(("wte.weight", "lm_head.weight")) and len(weights[name]) != len(view) else len(view)
        view[:n] = weights[name][:n]
