"""The GPT against the same sums written out: attention, loss and gradients, initialisation, FLOPs."""

import math

import pytest
import torch
import torch.nn.functional as F

from conftest import LargestTensor
from model import GPT, Attention, chunk_size, linear_cross_entropy


# ---- the slow ways ----
def slow_attention(q, k, v):
    """softmax(q k / sqrt(D)) v of one head, query by query: each sees itself and those before it. (T, D) each."""
    rows = []
    for t in range(len(q)):
        weights = torch.softmax(torch.stack([q[t] @ k[s] / math.sqrt(q.shape[1]) for s in range(t + 1)]), 0)
        rows.append(sum(weights[s] * v[s] for s in range(t + 1)))
    return torch.stack(rows)


def slow_cross_entropy(hidden, weight, targets):
    """With all logits at once."""
    logits = hidden @ weight.T  # (B, T, V)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
    return losses.sum(), losses.view_as(targets)


def small(**changes) -> GPT:
    torch.manual_seed(0)
    return GPT(**{"vocab_size": 50, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 8, "init_std": 0.3,
                  "embedding_init_std": 1.0} | changes)


# ---- layers ----
def test_layers_are_the_plain_word_embedding_and_every_block():
    model, ids = small(n_layer=3), torch.randint(50, (2, 5))
    layers = model.layers(ids)
    assert len(layers) == 4 and all(layer.shape == (2, 5, 8) for layer in layers)
    assert torch.equal(layers[0], model.wte.weight[ids])  # no position in it
    x = layers[0] + model.wpe.weight[:5]
    for block, layer in zip(model.blocks, layers[1:]):
        x = block(x)
        torch.testing.assert_close(layer, x)
    torch.testing.assert_close(model(ids), model.ln_f(layers[-1]))


@pytest.mark.parametrize("short_row", [512, 0])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_attention_is_the_sum_written_out(monkeypatch, short_row, dtype, tolerance):
    """As it is of short rows on a CPU, and as it is of long ones: the output, and a gradient."""
    monkeypatch.setattr("model.SHORT_ROW", short_row)
    torch.manual_seed(0)
    attention, x = Attention(n_embd=6, n_head=3), torch.randn(2, 9, 6, requires_grad=True)
    q, k, v = attention.qkv(x).split(6, dim=-1)
    heads = [torch.stack([slow_attention(*(y[b, :, 2 * h:2 * h + 2] for y in (q, k, v))) for b in range(2)])
             for h in range(3)]
    expected = attention.proj(torch.cat(heads, dim=-1))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found = attention(x).float()
    gradient, slow_gradient = (torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected))
    for mine, slow in ((found, expected), (gradient, slow_gradient)):
        assert (mine - slow).norm() < tolerance * slow.norm()


# ---- loss ----
def test_two_tokens_and_three_words_by_hand():
    ln2, ln3 = math.log(2), math.log(3)
    hidden = torch.tensor([[[1.0, 0], [0, 2]]], requires_grad=True)
    weight = torch.tensor([[0, 0], [ln2, 0], [0, ln3 / 2]], requires_grad=True)
    # logits 0, ln 2, 0 and 0, 0, ln 3: probabilities 1/4, 1/2, 1/4 and 1/5, 1/5, 3/5
    total, losses = linear_cross_entropy(hidden, weight, torch.tensor([[1, 0]]))
    torch.testing.assert_close(losses, torch.tensor([[ln2, math.log(5)]]))
    torch.testing.assert_close(total.item(), math.log(10))
    # probabilities minus one-hot: 1/4, -1/2, 1/4 and -4/5, 1/5, 3/5
    to_hidden, to_weight = torch.autograd.grad(total, (hidden, weight))
    torch.testing.assert_close(to_hidden, torch.tensor([[[-ln2 / 2, ln3 / 8], [ln2 / 5, 0.3 * ln3]]]))
    torch.testing.assert_close(to_weight, torch.tensor([[0.25, -1.6], [-0.5, 0.4], [0.25, 1.2]]))


def many_chunks(dtype: torch.dtype = torch.float32):
    """Hidden states, output embeddings, and targets, a third of them -1, in some chunks of tokens, the last smaller."""
    torch.manual_seed(0)
    C, V, T = 8, 5000, 640
    chunk = chunk_size(2 * T, V, dtype, torch.device("cpu"))
    assert 2 * chunk < 2 * T and 2 * T % chunk
    targets = torch.randint(V, (2, T)).where(torch.rand(2, T) > 0.3, -1)
    return torch.randn(2, T, C, requires_grad=True), torch.randn(V, C, requires_grad=True), targets


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_loss_and_gradients_are_those_of_the_full_logits(dtype, tolerance):
    hidden, weight, targets = many_chunks(dtype)
    expected, each = slow_cross_entropy(hidden, weight, targets)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        total, losses = linear_cross_entropy(hidden, weight, targets)
        # One of the two without a gradient, and none.
        from_hidden, _ = linear_cross_entropy(hidden, weight.detach(), targets)
        from_weight, _ = linear_cross_entropy(hidden.detach(), weight, targets)
        with torch.no_grad():
            without, same = linear_cross_entropy(hidden, weight, targets)
    assert (losses[targets < 0] == 0).all() and not losses.requires_grad and not without.requires_grad
    slow = torch.autograd.grad(0.37 * expected, (hidden, weight))
    mine = torch.autograd.grad(0.37 * total, (hidden, weight))
    alone = torch.autograd.grad(0.37 * (from_hidden + from_weight), (hidden, weight))
    for x, exact in zip((total, losses, without, same, *mine, *alone), (expected, each, expected, each, *slow, *slow)):
        assert x.dtype == torch.float32 and (x - exact).norm() < tolerance * exact.norm()


@pytest.mark.parametrize("target", [0, 1])
def test_gradients_of_confident_predictions_survive_bf16(target):
    """With p(target) of 0.9991, which bf16 rounds to 1, as with p(target) of 0.0009; float64 says what they are."""
    hidden = torch.eye(1, 4).view(1, 1, 4).repeat(1, 3, 1).requires_grad_()
    weight = torch.tensor([[7.0, 1, 2, 3], [0, 3, 2, 1]], requires_grad=True)
    targets = torch.full((1, 3), target)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = linear_cross_entropy(hidden, weight, targets)
    expected, _ = slow_cross_entropy(hidden.double(), weight.double(), targets)
    torch.testing.assert_close(total.double(), expected, rtol=0.01, atol=0)
    exact = torch.autograd.grad(expected, (hidden, weight))
    torch.testing.assert_close(torch.autograd.grad(total, (hidden, weight)), exact, rtol=0.01, atol=1e-5)


def test_float16_sums_of_many_tokens_do_not_overflow():
    hidden, weight = torch.full((1, 2000, 4), 100.0), torch.zeros(3, 4, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        linear_cross_entropy(hidden, weight, torch.zeros(1, 2000, dtype=torch.long))[0].backward()
    # Every token adds (1/3 - 1) * 100 to the row of its target: far beyond float16's 65504.
    torch.testing.assert_close(weight.grad[0], torch.full((4,), 2000 * (1 / 3 - 1) * 100.0), rtol=1e-3, atol=0)


def test_the_largest_tensor_is_the_logits_of_one_chunk():
    hidden, weight, targets = many_chunks()
    with LargestTensor() as largest:
        linear_cross_entropy(hidden, weight, targets)[0].backward()
    # The vocabulary of 5,000 is filled up to a multiple of 64.
    assert largest.nbytes == 4 * 5056 * chunk_size(1280, 5000, torch.float32, torch.device("cpu"))


# ---- parameters ----
@pytest.mark.parametrize("tie", [True, False])
def test_every_parameter_has_its_first_values_and_matrices_are_decayed(tie):
    model = small(vocab_size=2000, block_size=512, n_layer=8, n_embd=64, init_std=0.02, embedding_init_std=0.5,
                  tie_embeddings=tie)
    assert (model.lm_head.weight is model.wte.weight) == tie
    decayed, others = model.parameter_groups(0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    is_decayed = {id(p): group is decayed for group in (decayed, others) for p in group["params"]}
    assert len(decayed["params"]) + len(others["params"]) == len(is_decayed) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        is_matrix = not name.endswith(".bias") and ".ln_" not in "." + name
        assert is_decayed[id(p)] == is_matrix, name
        if is_matrix:
            std = 0.02 / math.sqrt(2 * 8) if "proj" in name else 0.02
            std = 0.5 if name in ("wte.weight", "lm_head.weight") else std
            assert p.std().item() == pytest.approx(std, rel=0.1) and abs(p.mean().item()) < 0.1 * std, name
        else:
            assert (p == (0 if name.endswith(".bias") else 1)).all(), name


def test_flops_by_hand():
    model = small(vocab_size=10)
    block = 8 * 24 + 8 * 8 + 8 * 32 + 32 * 8  # qkv, proj, fc, proj
    # Forward 2 operations a weight, backward twice that; queries x keys and weights x values of 16 positions, the same.
    assert model.flops_per_token() == 6 * (2 * block + 10 * 8) + 6 * 2 * (2 * 16 * 8)
