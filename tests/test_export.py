"""The Hugging Face folder: the same logits and the same tokens as ours; and one to begin with."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import eval as evaluation
from tools import export
from runtime import gpt2 as huggingface
import prealign
import train as training
from runtime.checkpoint import initial_state, load_checkpoint, load_trained, make_model
from runtime import errors
from runtime.errors import UserError
from conftest import overrides
from corpus.folder import Folder
from corpus.tokenizer import encode

TEXT = "Lo ba der, it's 1234 — “naïve” 日本語 don't!\n\n  In ta."


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(errors, "StopSignal", lambda: type("Never", (), {"asked": False})())

    def make(**changes):
        config = replace(tiny, out_dir=str(tmp_path), max_steps=24, stage1_steps=2, init_std=0.3, **changes)
        training.main(overrides(config))
        return config

    return make


@pytest.mark.parametrize("tie", [True, False])
def test_transformers_computes_the_same(run, tie):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("safetensors")
    config = run(tie_embeddings=tie)
    export.main(overrides(config))
    folder = str(Path(config.run_dir, "huggingface"))
    data = Folder(config.data_dir)
    ours, _ = load_trained(config.run_dir, data)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(0, data.vocab_size, (2, config.block_size), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torch.nn.functional.linear(ours(ids), ours.lm_head.weight)
        assert (theirs(ids).logits - expected).abs().max() < 1e-4 and expected.std() > 0.1
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer(TEXT)["input_ids"] == encode(data.encoding, TEXT).tolist()
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT and tokenizer.eos_token_id == data.end_of_text
    card = Path(folder, "README.md").read_text()
    assert "En-Clone" in card and json.dumps(config.plain()["max_steps"]) in card


def test_the_card_says_how_the_model_was_made_and_what_was_measured_of_it(run):
    config = run(codeswitch_ratio=0.3, eval_words=20, sample_count=2)
    data = Folder(config.data_dir)
    _, state = load_trained(config.run_dir, data)

    def card() -> str:
        return export.model_card(config, data, state, config.run_dir)

    assert "30% of en's words with an entry were replaced by translations (input-only)" in card() and "# Results" not in card()
    result = evaluation.evaluate(config)
    assert f"{result['lm']['clone']['ppl']:.1f}" in card().partition("# Results")[2] and "CLKA en->clone" in card()
    os.utime(Path(config.run_dir, "eval.json"), (0, 0))  # of a model that was here before
    assert "# Results" not in card()


def test_an_encoding_with_unused_ids_is_exported_with_its_own(tiny, tmp_path, monkeypatch):
    """As cl100k_base and o200k_base have them, before end-of-text."""
    transformers = pytest.importorskip("transformers")
    import tiktoken

    data = Folder(tiny.data_dir)
    own = data.encoding
    data.__dict__["encoding"] = tiktoken.Encoding("gaps", pat_str=own._pat_str, mergeable_ranks=own._mergeable_ranks, special_tokens={"<|endoftext|>": own.n_vocab + 2})
    data.end_of_text = own.n_vocab + 2
    export.write_tokenizer(data, str(tmp_path))
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert tokenizer.eos_token_id == data.end_of_text and tokenizer(TEXT)["input_ids"] == encode(own, TEXT).tolist()


def test_weights_have_gpt2s_names_and_shapes(run):
    config = run()
    model, _ = load_trained(config.run_dir, Folder(config.data_dir))
    found = huggingface.gpt2_weights(model)
    C = config.n_embd
    assert found["transformer.h.1.attn.c_attn.weight"].shape == (C, 3 * C) and found["transformer.h.0.mlp.c_proj.weight"].shape == (4 * C, C)
    assert torch.equal(found["transformer.h.0.mlp.c_fc.weight"], model.blocks[0].mlp.fc.weight.T)
    assert sum(value.numel() for value in found.values()) == sum(p.numel() for p in model.parameters()) and "lm_head.weight" not in found


def test_a_package_that_is_missing_is_named(run, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match="pip install transformers safetensors"):
        export.main(overrides(run()))


def hf_folder(path: Path, model, **config) -> str:
    """A folder as transformers writes it, without transformers."""
    path.mkdir(exist_ok=True)
    torch.save(huggingface.gpt2_weights(model), path / "pytorch_model.bin")
    (path / "config.json").write_text(json.dumps(huggingface.gpt2_config(model, 0) | config))
    return str(path)


@pytest.mark.parametrize("tie", [True, False])
def test_a_run_begins_with_gpt2s_weights(tiny, tmp_path, tie):
    """English's embeddings, and all else, are the other model's; En-Clone's are random, and a longer table of positions is cut."""
    data = Folder(tiny.data_dir)
    config = replace(tiny, tie_embeddings=tie)
    english = make_model(replace(config, block_size=2 * config.block_size), data.V)
    model = make_model(config, data.vocab_size)
    before = model.wte.weight[data.V:].clone()
    initial_state(model, replace(config, init_from=f"hf:{hf_folder(tmp_path / 'gpt2', english)}"), data)
    ids = torch.randint(0, data.V, (2, config.block_size), generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(ids), english(ids)) and torch.equal(model.lm_head.weight[:data.V], english.lm_head.weight)
    assert torch.equal(model.wte.weight[data.V:], before) and len(before) == data.V
    assert (model.lm_head.weight is model.wte.weight) == tie


def test_a_run_begins_with_an_exported_model(tiny, tmp_path):
    data = Folder(tiny.data_dir)
    other, model = make_model(tiny, data.vocab_size), make_model(tiny, data.vocab_size)
    initial_state(model, replace(tiny, init_from=f"hf:{hf_folder(tmp_path / 'ours', other)}"), data)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_both_stages_go_on_from_it(run, tiny, tmp_path):
    data = Folder(tiny.data_dir)
    folder = hf_folder(tmp_path / "gpt2", make_model(replace(tiny, init_std=0.3), data.V))
    config = run(init_from=f"hf:{folder}", method="continued")
    prealign.main(overrides(config))
    aligned = run(init_from="align", method="prealign", codeswitch_ratio=0.3)
    scratch = run(method="joint")
    loss = [json.loads(Path(c.run_dir, "metrics.jsonl").read_text().splitlines()[-1])["loss"] for c in (config, aligned, scratch)]
    assert len(set(loss)) == 3 and load_checkpoint(str(Path(aligned.stage1_dir, "checkpoint.pt")))["config"]["init_from"] == f"hf:{folder}"


@pytest.mark.parametrize("config, message", [
    ({"model_type": "llama"}, "expected model_type gpt2, found 'llama'"),
    ({"n_layer": 3}, "--n_layer=3 \\(here 2\\)"),
    ({"tie_word_embeddings": False}, "--tie_embeddings=false"),
    ({"vocab_size": 7}, "its vocabulary has 7 ids"),
    ({"n_positions": 5}, "--block_size=5 or less"),
    ({"n_positions": None}, "must be whole numbers, found .* and None"),
    ({"activation_function": "relu"}, "activation_function is 'relu'"),
    ({"n_embd": 8}, "--n_embd=8")])
def test_a_model_of_another_kind_is_refused(tiny, tmp_path, config, message):
    data = Folder(tiny.data_dir)
    model = make_model(tiny, data.vocab_size)
    folder = hf_folder(tmp_path / "gpt2", model, **config)
    with pytest.raises(UserError, match=message):
        initial_state(model, replace(tiny, init_from=f"hf:{folder}"), data)


def test_a_damaged_folder_is_refused(tiny, tmp_path):
    data = Folder(tiny.data_dir)
    model = make_model(tiny, data.vocab_size)
    folder = hf_folder(tmp_path / "gpt2", model)
    config = replace(tiny, init_from=f"hf:{folder}")
    torch.save({k: v for k, v in huggingface.gpt2_weights(model).items() if "ln_f" not in k}, f"{folder}/pytorch_model.bin")
    with pytest.raises(UserError, match="lack transformer.ln_f.weight"):
        initial_state(model, config, data)
    for value, message in ((torch.zeros(9 * tiny.n_embd), "has shape"), (torch.tensor(0.0), "has shape"), (torch.full((tiny.n_embd,), torch.nan), "not an array of finite"),
                           (3, "not an array of finite")):
        torch.save(huggingface.gpt2_weights(model) | {"transformer.ln_f.bias": value}, f"{folder}/pytorch_model.bin")
        with pytest.raises(UserError, match=f"transformer.ln_f.bias .*{message.removeprefix('has ')}"):
            initial_state(model, config, data)
    Path(folder, "pytorch_model.bin").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="not a whole file of weights"):
        initial_state(model, config, data)
    Path(folder, "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="found neither"):
        initial_state(model, config, data)
    with pytest.raises(UserError, match="on this machine"):
        initial_state(model, replace(tiny, init_from="hf:openai/gpt2"), data)
