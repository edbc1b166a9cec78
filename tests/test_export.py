"""The Hugging Face folder: the same logits and the same tokens as ours."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import export
import train as training
from checkpoint import load_trained
from config import UserError
from conftest import overrides
from dataset import Dataset
from tokenizer import encode

TEXT = "Lo ba der, it's 1234 — “naïve” 日本語 don't!\n\n  In ta."


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "StopSignal", lambda: type("Never", (), {"asked": False})())
    monkeypatch.setattr(training, "matmul_rate", lambda hardware: 1e9)

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
    data = Dataset(config.data_dir)
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


def test_weights_have_gpt2s_names_and_shapes(run):
    config = run()
    model, _ = load_trained(config.run_dir, Dataset(config.data_dir))
    found = export.weights(model)
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
