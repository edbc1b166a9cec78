"""The GPT against the same sums written out: attention, loss and gradients, initialisation, FLOPs."""

import math

import pytest
import torch
import torch.nn.functional as F

from conftest import LiveBytes
from model import GPT, Attention, attention_written_out, chunk_size, linear_cross_entropy


def small(seed: int = 0, **changes) -> GPT:
    torch.manual_seed(seed)
    return GPT(**{"vocab_size": 50, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 8, "init_std": 0.3, "embedding_init_std": 1.0} | changes)


# ---- forward ----

def test_shapes():
    model, ids = small(), torch.randint(50, (3, 11))
    assert model(ids).shape == (3, 11, 8)
    total, losses = model(ids, ids)
    assert total.shape == () and losses.shape == (3, 11) and total.dtype == losses.dtype == torch.float32
    torch.testing.assert_close(total, losses.sum())


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


def test_a_later_token_changes_nothing_before_it():
    model, ids = small(), torch.randint(50, (1, 16))
    for changed in (1, 8, 15):
        other = ids.clone()
        other[0, changed] = (ids[0, changed] + 1) % 50
        for before, after in zip(model.layers(ids), model.layers(other)):
            assert torch.equal(before[:, :changed], after[:, :changed])
            assert not torch.equal(before[:, changed:], after[:, changed:])


def test_attention_is_the_sum_written_out():
    torch.manual_seed(0)
    attention, x = Attention(n_embd=6, n_head=3), torch.randn(2, 4, 6)
    q, k, v = attention.qkv(x).split(6, dim=-1)
    expected = torch.zeros(2, 4, 6)
    for b in range(2):
        for head in (slice(0, 2), slice(2, 4), slice(4, 6)):
            for t in range(4):
                weight = torch.softmax(torch.stack([q[b, t, head] @ k[b, s, head] / math.sqrt(2) for s in range(t + 1)]), 0)
                expected[b, t, head] = sum(weight[s] * v[b, s, head] for s in range(t + 1))
    torch.testing.assert_close(attention(x), attention.proj(expected))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_attention_written_out_is_the_fused_kernels(dtype, tolerance):
    torch.manual_seed(0)
    ours = [torch.randn(2, 3, 37, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
    theirs = [x.detach().float().requires_grad_() for x in ours]
    a, b = attention_written_out(*ours), F.scaled_dot_product_attention(*theirs, is_causal=True)
    upstream = torch.randn_like(b)
    a.backward(upstream.to(dtype))
    b.backward(upstream)
    for mine, other in zip((a, *(x.grad for x in ours)), (b, *(x.grad for x in theirs))):
        torch.testing.assert_close(mine.float(), other, rtol=tolerance, atol=tolerance)


def test_a_block_adds_attention_and_mlp_of_what_it_has_normalised():
    block, x = small().blocks[0], 3 + 5 * torch.randn(2, 4, 8)

    def normalised(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    def gelu(x):  # the tanh approximation, as GPT-2 has it
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    middle = x + block.attention(normalised(x))
    torch.testing.assert_close(block(x), middle + block.mlp.proj(gelu(block.mlp.fc(normalised(middle)))))


@pytest.mark.parametrize("tie", [True, False])
def test_an_untrained_model_knows_nothing(tie):
    model = small(vocab_size=1000, n_embd=64, init_std=0.02, embedding_init_std=0.02, tie_embeddings=tie)
    ids, targets = torch.randint(1000, (2, 8, 16))
    assert model(ids, targets)[1].mean().item() == pytest.approx(math.log(1000), abs=0.05)


# ---- loss ----

def many_chunks(C: int = 8, V: int = 5000, dtype: torch.dtype = torch.float32):
    """Hidden states, output embeddings and targets, a third of them -1, in more than two chunks of tokens, the last one smaller."""
    torch.manual_seed(0)
    T = 640
    chunk = chunk_size(2 * T, V, dtype, torch.device("cpu"))
    assert 2 * chunk < 2 * T and 2 * T % chunk
    targets = torch.randint(V, (2, T)).where(torch.rand(2, T) > 0.3, -1)
    return torch.randn(2, T, C, requires_grad=True), torch.randn(V, C, requires_grad=True), targets


def slow_cross_entropy(hidden, weight, targets):
    losses = F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none").view_as(targets)
    return losses.sum(), losses


def gradients(loss, hidden, weight):
    return torch.autograd.grad(loss, (hidden, weight))


def test_loss_and_gradients_are_those_of_the_full_logits():
    hidden, weight, targets = many_chunks()
    (total, losses), (expected, each) = linear_cross_entropy(hidden, weight, targets), slow_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(losses, each)
    torch.testing.assert_close(total, expected)
    assert (losses[targets < 0] == 0).all() and not losses.requires_grad
    for mine, slow in zip(gradients(0.37 * total, hidden, weight), gradients(0.37 * expected, hidden, weight)):
        torch.testing.assert_close(mine, slow, rtol=1e-4, atol=1e-5)


def test_loss_without_gradients_is_the_same():
    hidden, weight, targets = many_chunks()
    with torch.no_grad():
        total, losses = linear_cross_entropy(hidden, weight, targets)
    assert not total.requires_grad
    torch.testing.assert_close(losses, linear_cross_entropy(hidden, weight, targets)[1])


@pytest.mark.parametrize("target", [0, 1])
def test_gradients_of_confident_predictions_survive_bf16(target):
    """With p(target) of 0.9991, which bf16 rounds to 1, as with p(target) of 0.0009: the slow way in float64 says what they are."""
    hidden, weight = torch.eye(1, 4).view(1, 1, 4).repeat(1, 3, 1).requires_grad_(), torch.nn.Parameter(torch.tensor([[7.0, 1, 2, 3], [0, 3, 2, 1]]))
    targets = torch.full((1, 3), target)
    with torch.autocast("cpu", torch.bfloat16):
        total, losses = linear_cross_entropy(hidden, weight, targets)
    got = gradients(total, hidden, weight)
    exact_hidden, exact_weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    expected = F.cross_entropy((exact_hidden @ exact_weight.T).flatten(0, 1), targets.flatten(), reduction="sum")
    for mine, exact in zip(got, gradients(expected, exact_hidden, exact_weight)):
        torch.testing.assert_close(mine.double(), exact, rtol=0.01, atol=1e-5)
    torch.testing.assert_close(total.double(), expected, rtol=0.01, atol=0)


def test_only_what_is_asked_for_gets_a_gradient():
    hidden, weight, targets = many_chunks()
    expected = gradients(slow_cross_entropy(hidden, weight, targets)[0], hidden, weight)
    to_hidden, = torch.autograd.grad(linear_cross_entropy(hidden, weight.detach(), targets)[0], hidden)
    to_weight, = torch.autograd.grad(linear_cross_entropy(hidden.detach(), weight, targets)[0], weight)
    torch.testing.assert_close(to_hidden, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(to_weight, expected[1], rtol=1e-4, atol=1e-5)


def test_loss_under_bf16_autocast():
    hidden, weight, targets = many_chunks(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        total, losses = linear_cross_entropy(hidden, weight, targets)
    expected, each = slow_cross_entropy(hidden, weight, targets)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, each, rtol=0.01, atol=0.05)  # bf16 has 8 bits
    for mine, slow in zip(gradients(total, hidden, weight), gradients(expected, hidden, weight)):
        assert mine.dtype == torch.float32
        assert (mine - slow).norm() < 0.02 * slow.norm()


def test_two_chunks_of_logits_are_held_at_most():
    """Logits and probabilities of one chunk; for all tokens, the gradients of the hidden states and a few numbers each."""
    def peak(repeats: int) -> int:
        hidden, weight, targets = many_chunks()
        hidden, targets = hidden.repeat(repeats, 1, 1), targets.repeat(repeats, 1)
        with LiveBytes() as live:
            linear_cross_entropy(hidden, weight, targets)[0].backward()
        return live.peak

    V, C = 5000, 8
    chunk = chunk_size(1280, V, torch.float32, torch.device("cpu"))
    assert chunk_size(5 * 1280, V, torch.float32, torch.device("cpu")) >= chunk
    assert 2 * chunk * V * 4 < peak(1) < 2.3 * chunk * V * 4  # gradients of the weight are small here
    assert (peak(5) - peak(1)) / (4 * 1280) < 4 * (C + 1) + 40 + 2.3 * 4 * V * 128 / (4 * 1280)  # bytes for a token, where logits would be 20,000


def test_tokens_are_in_chunks_of_one_size():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert chunk_size(2048, 32768, torch.bfloat16, cpu) == 512 and chunk_size(2048, 32768, torch.float32, cpu) == 256
    assert chunk_size(2048, 1024, torch.bfloat16, cpu) == 2048 and chunk_size(100, 32768, torch.bfloat16, cpu) == 128
    assert chunk_size(12_000, 100_514, torch.bfloat16, gpu) == 6016  # and not one of 10,682 and one of 1,318


def test_nothing_to_predict_costs_nothing():
    hidden, weight, targets = many_chunks()
    total, _ = linear_cross_entropy(hidden, weight, torch.full_like(targets, -1))
    assert total.item() == 0 and all((g == 0).all() for g in gradients(total, hidden, weight))


def test_two_tokens_and_three_words_by_hand():
    ln2, ln3 = math.log(2), math.log(3)
    hidden = torch.tensor([[[1.0, 0], [0, 2]]], requires_grad=True)
    weight = torch.tensor([[0, 0], [ln2, 0], [0, ln3 / 2]], requires_grad=True)
    # logits 0, ln 2, 0 and 0, 0, ln 3: probabilities 1/4, 1/2, 1/4 and 1/5, 1/5, 3/5
    total, losses = linear_cross_entropy(hidden, weight, torch.tensor([[1, 0]]))
    torch.testing.assert_close(losses, torch.tensor([[ln2, math.log(5)]]))
    torch.testing.assert_close(total.item(), math.log(10))
    # probabilities minus one-hot: 1/4, -1/2, 1/4 and -4/5, 1/5, 3/5
    to_hidden, to_weight = gradients(total, hidden, weight)
    torch.testing.assert_close(to_hidden, torch.tensor([[[-ln2 / 2, ln3 / 8], [ln2 / 5, 0.3 * ln3]]]))
    torch.testing.assert_close(to_weight, torch.tensor([[0.25, -1.6], [-0.5, 0.4], [0.25, 1.2]]))


@pytest.mark.parametrize("tie", [True, False])
def test_the_whole_model_has_the_gradients_of_the_full_logits(tie):
    model = small(tie_embeddings=tie)
    ids, targets = torch.randint(50, (2, 3, 16))
    mine = torch.autograd.grad(model(ids, targets)[0], list(model.parameters()))
    slow = torch.autograd.grad(slow_cross_entropy(model(ids), model.lm_head.weight, targets)[0], list(model.parameters()))
    for a, b in zip(mine, slow):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# ---- parameters ----

def test_tied_embeddings_are_one_tensor():
    tied, untied = small(tie_embeddings=True), small(tie_embeddings=False)
    assert tied.lm_head.weight is tied.wte.weight
    assert untied.lm_head.weight is not untied.wte.weight and not torch.equal(untied.lm_head.weight, untied.wte.weight)
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters()) == 50 * 8


@pytest.mark.parametrize("tie", [True, False])
def test_matrices_are_decayed_and_every_parameter_is_in_one_group(tie):
    model = small(tie_embeddings=tie)
    decayed, others = model.parameter_groups(0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert sorted(id(p) for group in (decayed, others) for p in group["params"]) == sorted(id(p) for p in model.parameters())
    names = {id(p): name for name, p in model.named_parameters()}
    for name in (names[id(p)] for p in others["params"]):
        assert name.endswith(".bias") or name.split(".")[-2].startswith("ln_")
    for name in (names[id(p)] for p in decayed["params"]):
        assert name.endswith(".weight") and not name.split(".")[-2].startswith("ln_")


def test_initialisation():
    model = small(vocab_size=2000, block_size=512, n_layer=8, n_embd=64, init_std=0.02, embedding_init_std=0.5, tie_embeddings=False)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            assert (parameter == 0).all(), name
        elif name.split(".")[-2].startswith("ln_"):
            assert (parameter == 1).all(), name
        else:
            expected = 0.5 if name in ("wte.weight", "lm_head.weight") else 0.02 / math.sqrt(16) if "proj" in name else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.1 * expected, name


@pytest.mark.parametrize("tie", [True, False])
def test_flops_by_hand(tie):
    model = small(vocab_size=10, block_size=16, n_layer=2, n_embd=8, tie_embeddings=tie)
    block = 8 * 24 + 8 * 8 + 8 * 32 + 32 * 8  # qkv, proj, fc, proj
    # Forward 2 operations a weight, backward twice that; queries x keys and weights x values of 16 positions, the same.
    assert model.flops_per_token() == 6 * (2 * block + 10 * 8) + 6 * 2 * (2 * 16 * 8)


def test_without_gradients_none_are_taken(monkeypatch):
    hidden, weight = torch.randn(1, 5, 4), torch.nn.Parameter(torch.randn(7, 4))
    expected = linear_cross_entropy(hidden, weight, torch.ones(1, 5, dtype=torch.long))[1]
    monkeypatch.setattr(torch, "zeros", lambda *args, **kwargs: pytest.fail("made room for the gradient of the weight"))
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, weight, torch.ones(1, 5, dtype=torch.long))[1], expected)


def test_float16_sums_of_many_tokens_do_not_overflow():
    hidden, weight = torch.full((1, 2000, 4), 100.0), torch.nn.Parameter(torch.zeros(3, 4))
    with torch.autocast("cpu", torch.float16):
        linear_cross_entropy(hidden, weight, torch.zeros(1, 2000, dtype=torch.long))[0].backward()
    # Every token adds (1/3 - 1) * 100 to the row of its target: far beyond float16's 65504.
    torch.testing.assert_close(weight.grad[0], torch.full((4,), 2000 * (1 / 3 - 1) * 100.0), rtol=1e-3, atol=0)
