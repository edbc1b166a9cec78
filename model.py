"""
The GPT: GPT-2's architecture (learned positions, pre-norm, GELU, biases), written to be read. Imports nothing of ours.

    tokens (B, T) -> wte + wpe -> n_layer x [x + attention(ln(x)); x + mlp(ln(x))] -> ln_f -> lm_head -> (B, T, V)

The loss never holds the logits of a whole batch: see LinearCrossEntropy.
"""

import math
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

# Tokens of rows for which a CPU has attention written out.
SHORT_ROW = 512
# cuDNN's attention, which a Hopper GPU prefers, plans anew for every shape, for about half a second each: where rows
# come in many shapes (single words, pairs of sentences), `with sdpa_kernel(ANY_SHAPE):` leaves it out.
ANY_SHAPE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Attention(nn.Module):
    def __init__(self, n_embd: int, n_head: int):
        super().__init__()
        self.n_head = n_head
        self.qkv = nn.Linear(n_embd, 3 * n_embd)
        self.proj = nn.Linear(n_embd, n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, n_head, T, C / n_head)
        if x.device.type == "cpu" and T <= SHORT_ROW:
            y = attention_written_out(q, k, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


def attention_written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention: softmax(q k^T / sqrt(D) + mask) v, each (B, n_head, T, D). Its memory grows with T * T."""
    # Faster than torch's fused kernel on a CPU and for short rows: 2.5 times at 256 tokens in bf16, with gradients.
    B, H, T, D = q.shape
    future = torch.full((T, T), float("-inf"), dtype=q.dtype).triu(1)
    scores = torch.baddbmm(future, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=1 / math.sqrt(D))  # (B * n_head, T, T)
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).view(B, H, T, D)


class MLP(nn.Module):
    def __init__(self, n_embd: int):
        super().__init__()
        self.fc = nn.Linear(n_embd, 4 * n_embd)
        self.proj = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(F.gelu(self.fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, n_embd: int, n_head: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.attention = Attention(n_embd, n_head)
        self.ln_2 = nn.LayerNorm(n_embd)
        self.mlp = MLP(n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Pre-norm: what goes from block to block is a sum, never normalised itself.
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, vocab_size: int, block_size: int, n_layer: int, n_head: int, n_embd: int,
                 tie_embeddings: bool = True, init_std: float = 0.02, embedding_init_std: float = 0.02):
        super().__init__()
        self.block_size, self.n_head = block_size, n_head
        self.loss_function = linear_cross_entropy
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(block_size, n_embd)
        self.blocks = nn.ModuleList(Block(n_embd, n_head) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name in ("wte.weight", "lm_head.weight"):
                nn.init.normal_(parameter, std=embedding_init_std)
            elif name.endswith("proj.weight"):
                # 2 * n_layer branches add up in the residual stream (GPT-2).
                nn.init.normal_(parameter, std=init_std / math.sqrt(2 * n_layer))
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=init_std)
        if tie_embeddings:
            self.lm_head.weight = self.wte.weight

    def layers(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Word embedding and each block's output of ids (B, T) int64: layers 0..L, each (B, T, C)."""
        # These, and the output embedding as layer L + 1, are what stage 1 aligns: layer 0 is without a position.
        embedding = self.wte(ids)  # (B, T, C)
        x = embedding + self.wpe.weight[: ids.shape[1]]
        layers = [embedding]
        for block in self.blocks:
            x = block(x)
            layers.append(x)
        return layers

    def forward(self, ids: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        """
        With targets (B, T) int64, where -1 is not predicted: (sum of the losses, losses (B, T)), both float32, in nats;
        gradients flow through the sum. Without: final hidden states (B, T, C), after ln_f.
        """
        hidden = self.ln_f(self.layers(ids)[-1])  # (B, T, C)
        if targets is None:
            return hidden
        return self.loss_function(hidden, self.lm_head.weight, targets)

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        """AdamW groups: matrices and embeddings are decayed, biases and norms are not."""
        decay = [p for p in self.parameters() if p.dim() >= 2]
        no_decay = [p for p in self.parameters() if p.dim() < 2]
        return [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]

    def flops_per_token(self) -> int:
        """Floating-point operations of one training token (PaLM, appendix B)."""
        # Of each weight of a matrix 2 forward and 4 backward; of queries x keys and weights x values, the same.
        matrices = [p for block in self.blocks for p in block.parameters() if p.dim() == 2] + [self.lm_head.weight]
        attention = 12 * len(self.blocks) * self.wte.embedding_dim * self.block_size
        return 6 * sum(p.numel() for p in matrices) + attention


# ---- The loss: cross-entropy of `hidden @ weight.T`, without holding all logits. Plainly it is ----
#
#     logits = F.linear(hidden, weight)                                               # (N, V)
#     losses = F.cross_entropy(logits.float(), targets, ignore_index=-1, reduction="none")
#
# torch 2.13 has a function of its own for this. Here it was as fast at best, returns its loss in bf16 and none per
# token, and older versions of torch lack it.


def chunk_size(tokens: int, vocab_size: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many tokens' logits are held at once: a multiple of 128, so that all chunks are of about one size."""
    # As many as stay in a CPU's cache or fill a GPU, but enough to make a pass over the weight's gradients worth it.
    limit = max(1024 // dtype.itemsize, (2**21 if device.type == "cpu" else 2**30) // vocab_size)
    return 128 * math.ceil(tokens / math.ceil(tokens / limit) / 128)


class LinearCrossEntropy(torch.autograd.Function):
    """The loss above, a chunk of tokens at a time, with both gradients taken in the same pass."""

    # Only (chunk, V) logits are ever held, and none are computed twice. The gradient of a *sum* of losses needs nothing
    # from upstream but one factor: the backward pass has only a multiplication left to do.
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> tuple:
        """hidden (N, C), weight (V, C), targets (N,) -> sum of the losses (), losses (N,), both float32"""
        (N, C), V, device = hidden.shape, weight.shape[0], hidden.device
        losses = torch.empty(N, dtype=torch.float32, device=device)
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else hidden.dtype
        # Gradients in float16 would overflow here, before the loss scale can help: they are float32.
        grad_dtype = torch.float32 if dtype == torch.float16 else dtype
        chunk = chunk_size(N, V, dtype, device)
        # A GPU is slow on rows of logits that are not aligned: V is filled up with ids that are never predicted.
        padding = -V % 64
        if needs_grad:
            grad_hidden = torch.empty_like(hidden)
            grad_weight = torch.zeros(V + padding, C, dtype=torch.float32, device=device)
        with torch.autocast(device.type, enabled=False):
            h_all, w = hidden.to(dtype), F.pad(weight.to(dtype), (0, 0, 0, padding))
            grad_w = w if grad_dtype == dtype else F.pad(weight.to(grad_dtype), (0, 0, 0, padding))
            for start in range(0, N, chunk):
                h, target = h_all[start:start + chunk], targets[start:start + chunk]  # (n, C), (n,)
                predicted = target >= 0  # (n,)
                # Row and column of every target in this chunk's logits. (scatter_ would copy the whole chunk.)
                at = torch.arange(len(h), device=device), target.clamp(min=0)
                logits = F.linear(h, w)  # (n, V + padding)
                logits[:, V:].fill_(-math.inf)
                if not needs_grad:
                    losses[start:start + chunk] = -F.log_softmax(logits, dim=-1, dtype=torch.float32)[at] * predicted
                    continue
                p = F.softmax(logits, dim=-1, dtype=grad_dtype)  # (n, V + padding)
                # The smallest float32 caps a loss at 87 nats.
                p_target = p[at].float().clamp(min=torch.finfo(torch.float32).tiny)  # (n,)
                # 1 - p_target is the sum of all other probabilities: bf16 would round a p_target near 1 to 1.
                # (new_zeros, as a plain 0 would be copied from the CPU, and waited for.)
                p[at] = p.new_zeros(())
                p_others = p.sum(dim=-1)  # (n,)
                loss = torch.where(p_others < 0.5, -torch.log1p(-p_others.float()), -p_target.log())
                losses[start:start + chunk] = loss * predicted
                # The gradient of the logits is softmax - one-hot, which at the target is p_target - 1.
                p[at] = -p_others
                grad_hidden[start:start + chunk] = (p @ grad_w) * predicted[:, None]
                grad_weight += p.T @ (h * predicted[:, None]).to(grad_dtype)
                # Or two chunks are held while the next is made.
                del p
        if needs_grad:
            ctx.save_for_backward(grad_hidden, grad_weight[:V])
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, grad_sum: torch.Tensor, _: None) -> tuple[torch.Tensor, torch.Tensor, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        # In place, as there is no second backward pass.
        return grad_hidden.mul_(grad_sum), grad_weight.mul_(grad_sum), None


def linear_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> tuple:
    """
    (sum of the losses, losses (B, T)) of predicting targets (B, T) int64 from hidden (B, T, C) with the output
    embeddings weight (V, C); nats, float32. A target of -1 is not predicted and costs 0. In bf16 the logits themselves
    are rounded: a token's loss is off by up to 0.14 nats.
    """
    # A parameter asks for its gradient even under no_grad.
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()
    total, losses = LinearCrossEntropy.apply(hidden.flatten(0, 1), weight, targets.flatten())
    return total, losses.view_as(targets)
