"""Nemotron-H in plain PyTorch, small enough to train on a CPU.

Why not the implementation in `transformers`: it drops every `mtp.*` tensor,
never updates the router's correction bias, and clamps dt in its chunked path.
Parameter names below are the published tensor names, so exporting is a
renaming of nothing but the experts, which are stacked here and separate on
disk.

One document is one row, from a zero state: the same start as in serving, and
nothing leaks across documents. Rows of a batch have nearly equal lengths;
padding sits on the right, where causality keeps it harmless.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from kernels import Convolution, Scan


@dataclass(frozen=True)
class Shape:
    """Every size of the model, under the names of `config.json`."""

    hybrid_override_pattern: str = "MEM*EMEM*E"
    mtp_hybrid_override_pattern: str = "*E"
    vocab_size: int = 2048
    hidden_size: int = 192
    mamba_num_heads: int = 12
    mamba_head_dim: int = 32
    ssm_state_size: int = 32
    n_groups: int = 2
    conv_kernel: int = 4
    chunk_size: int = 32
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 32
    n_routed_experts: int = 16
    num_experts_per_tok: int = 4
    moe_latent_size: int = 64
    moe_intermediate_size: int = 96
    moe_shared_expert_intermediate_size: int = 256
    routed_scaling_factor: float = 2.5
    layer_norm_epsilon: float = 1e-5

    @property
    def mamba_inner(self) -> int:
        return self.mamba_num_heads * self.mamba_head_dim

    @property
    def mamba_bc(self) -> int:
        return self.n_groups * self.ssm_state_size


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class Product(torch.autograd.Function):
    """x weight^T with bfloat16 operands, forwards and backwards.

    Rounding each operand once, by hand, is half again as fast as leaving it to
    the library's fast float32 mode.
    """

    @staticmethod
    def forward(ctx, x, weight):
        x, weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight).float()

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.bfloat16()
        return (grad @ weight).float(), (grad.flatten(0, -2).t() @ x.flatten(0, -2)).float()


class Linear(nn.Module):
    """Without bias. bfloat16 products in training, float32 in evaluation."""

    def __init__(self, inputs: int, outputs: int, scale: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * (scale / math.sqrt(inputs)))

    def forward(self, x):
        return Product.apply(x, self.weight) if self.training else F.linear(x, self.weight)


class Mamba2(nn.Module):
    """Training runs the compiled recurrence, evaluation the chunked scan: two
    derivations of one layer, so that each checks the other."""

    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        conv_dim = s.mamba_inner + 2 * s.mamba_bc
        self.in_proj = Linear(s.hidden_size, s.mamba_inner + conv_dim + s.mamba_num_heads)
        self.conv1d = nn.Conv1d(conv_dim, conv_dim, s.conv_kernel, groups=conv_dim)
        self.A_log = nn.Parameter(torch.empty(s.mamba_num_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(s.mamba_num_heads))
        dt = torch.exp(torch.empty(s.mamba_num_heads).uniform_(math.log(1e-3), math.log(0.1)))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.norm = RMSNorm(s.mamba_inner, s.layer_norm_epsilon)
        self.out_proj = Linear(s.mamba_inner, s.hidden_size, 0.5)

    def forward(self, u):
        s = self.s
        batch, length, _ = u.shape
        z, xbc, dt = self.in_proj(u).split([s.mamba_inner, s.mamba_inner + 2 * s.mamba_bc, s.mamba_num_heads], dim=-1)
        dt = F.softplus(dt + self.dt_bias)
        a = -torch.exp(self.A_log)
        if self.training:
            taps = self.conv1d.weight[:, 0].t()
            y = Scan.apply(Convolution.apply(xbc, taps, self.conv1d.bias), dt, a, self.D, s.n_groups)
        else:
            y = self.chunked(self.convolve(xbc), dt, a)
        v = (y * F.silu(z)).view(batch, length, s.n_groups, -1)
        v = v * torch.rsqrt(v.square().mean(-1, keepdim=True) + s.layer_norm_epsilon)
        return self.out_proj(v.flatten(2) * self.norm.weight)

    def chunked(self, xbc, dt, a):
        s = self.s
        x, b, c = xbc.split([s.mamba_inner, s.mamba_bc, s.mamba_bc], dim=-1)
        x = x.unflatten(-1, (s.mamba_num_heads, s.mamba_head_dim))
        b, c = (t.unflatten(-1, (s.n_groups, s.ssm_state_size)) for t in (b, c))
        y = chunked_scan(x, b, c, dt, a, s.chunk_size) + self.D[:, None] * x
        return y.flatten(2)

    def convolve(self, xbc):
        """Depthwise causal convolution as a sum of shifted rows, then SiLU."""
        kernel = self.s.conv_kernel
        padded = F.pad(xbc, (0, 0, kernel - 1, 0))
        length = xbc.shape[1]
        taps = self.conv1d.weight[:, 0, :].t()
        total = self.conv1d.bias + padded[:, :length] * taps[0]
        for j in range(1, kernel):
            total = total + padded[:, j : j + length] * taps[j]
        return F.silu(total)


def chunked_scan(x, b, c, dt, a, chunk):
    """The Mamba-2 recurrence, `chunk` tokens at a time, from a zero state.

    x [B,L,H,P], b and c [B,L,G,N], dt [B,L,H], a [H] (negative) -> [B,L,H,P].
    Inside a chunk it is masked attention; between chunks a short loop.
    """
    batch, length, heads, width = x.shape
    groups, state = b.shape[2:]
    per = heads // groups
    count = -(-length // chunk)
    pad = count * chunk - length
    if pad:
        x, b, c = (F.pad(t, (0, 0, 0, 0, 0, pad)) for t in (x, b, c))
        dt = F.pad(dt, (0, 0, 0, pad))
    # [B, n, G, heads of the group, Q, ...]
    dt = dt.view(batch, count, chunk, groups, per).permute(0, 1, 3, 4, 2)
    dx = x.view(batch, count, chunk, groups, per, width).permute(0, 1, 3, 4, 2, 5) * dt[..., None]
    b = b.view(batch, count, chunk, groups, state).transpose(2, 3)
    c = c.view(batch, count, chunk, groups, state).transpose(2, 3)
    decay = torch.cumsum(dt * a.view(groups, per, 1), -1)

    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
    gaps = (decay[..., :, None] - decay[..., None, :]).masked_fill(~causal, -torch.inf)
    scores = (c @ b.transpose(-1, -2))[:, :, :, None] * gaps.exp()
    y = scores @ dx
    if count > 1:
        tail = (decay[..., -1:] - decay).exp()
        # What each chunk adds to the state: [B, n, G, per, P, N].
        added = (dx * tail[..., None]).transpose(-1, -2) @ b[:, :, :, None]
        keep = decay[..., -1].exp()[..., None, None]
        current = added[:, 0]
        before = [torch.zeros_like(current)]
        for n in range(1, count):
            before.append(current)
            current = current * keep[:, n] + added[:, n]
        entering = torch.stack(before, 1)
        y = y + decay.exp()[..., None] * (c[:, :, :, None] @ entering.transpose(-1, -2))
    y = y.permute(0, 1, 4, 2, 3, 5).reshape(batch, count * chunk, heads, width)
    return y[:, :length]


class Attention(nn.Module):
    """Causal grouped-query attention with no notion of position."""

    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        self.q_proj = Linear(s.hidden_size, s.num_attention_heads * s.head_dim)
        self.k_proj = Linear(s.hidden_size, s.num_key_value_heads * s.head_dim)
        self.v_proj = Linear(s.hidden_size, s.num_key_value_heads * s.head_dim)
        self.o_proj = Linear(s.num_attention_heads * s.head_dim, s.hidden_size, 0.5)

    def forward(self, u):
        s = self.s
        batch, length, _ = u.shape
        per = s.num_attention_heads // s.num_key_value_heads
        q = self.q_proj(u).view(batch, length, s.num_key_value_heads, per, s.head_dim)
        k = self.k_proj(u).view(batch, length, s.num_key_value_heads, s.head_dim)
        v = self.v_proj(u).view(batch, length, s.num_key_value_heads, s.head_dim)
        # The queries of one key head become more rows of one product. Written
        # out because the fused CPU kernel is several times slower on short rows.
        q = q.permute(0, 2, 3, 1, 4).flatten(2, 3) * s.head_dim**-0.5
        scores = (q @ k.permute(0, 2, 3, 1)).unflatten(2, (per, length))
        future = torch.full((length, length), -torch.inf, device=u.device).triu(1)
        attended = (scores + future).softmax(-1).flatten(2, 3) @ v.transpose(1, 2)
        y = attended.unflatten(2, (per, length)).permute(0, 3, 1, 2, 4)
        return self.o_proj(y.flatten(2))


class Router(nn.Module):
    """Sigmoid scores; the correction bias decides who is chosen, not how much.

    The bias is not learnt by gradient: `balance` moves it towards the experts
    that had less than their share, which keeps the scores themselves honest.
    """

    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        self.weight = nn.Parameter(torch.randn(s.n_routed_experts, s.hidden_size) / math.sqrt(s.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(s.n_routed_experts))
        self.register_buffer("load", torch.zeros(s.n_routed_experts), persistent=False)

    def forward(self, u):
        scores = F.linear(u, self.weight).sigmoid()
        chosen = (scores + self.e_score_correction_bias).topk(self.s.num_experts_per_tok).indices
        weights = scores.gather(-1, chosen)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return chosen, weights * self.s.routed_scaling_factor

    def balance(self, step: float):
        share = self.load / self.load.sum().clamp(min=1) * len(self.load)
        self.e_score_correction_bias += step * (1 - share).clamp(-1, 1)
        self.load.zero_()


class Experts(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        n, latent, width = s.n_routed_experts, s.moe_latent_size, s.moe_intermediate_size
        self.up_proj = nn.Parameter(torch.randn(n, width, latent) / math.sqrt(latent))
        self.down_proj = nn.Parameter(0.5 * torch.randn(n, latent, width) / math.sqrt(width))


class GroupedMLP(torch.autograd.Function):
    """relu(x up^T)^2 down^T for rows sorted by expert.

    Written out by hand because autograd's bookkeeping for dozens of small
    slices costs more than the arithmetic. Without oneDNN, which would compile
    a kernel for every new number of rows.
    """

    @staticmethod
    @torch.backends.mkldnn.flags(enabled=False)
    def forward(ctx, x, up, down, counts):
        out = torch.empty_like(x)
        hidden = x.new_empty(x.shape[0], up.shape[1])
        start = 0
        for e, n in enumerate(counts):
            rows = slice(start, start + n)
            torch.mm(x[rows], up[e].t(), out=hidden[rows])
            start += n
        hidden.relu_()
        squared = hidden.square()
        start = 0
        for e, n in enumerate(counts):
            rows = slice(start, start + n)
            torch.mm(squared[rows], down[e].t(), out=out[rows])
            start += n
        ctx.save_for_backward(x, up, down, hidden, squared)
        ctx.counts = counts
        return out

    @staticmethod
    @torch.backends.mkldnn.flags(enabled=False)
    def backward(ctx, grad):
        x, up, down, hidden, squared = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x, grad_up, grad_down = torch.empty_like(x), torch.empty_like(up), torch.empty_like(down)
        grad_hidden = torch.empty_like(hidden)
        start = 0
        for e, n in enumerate(ctx.counts):
            rows = slice(start, start + n)
            torch.mm(grad[rows].t(), squared[rows], out=grad_down[e])
            torch.mm(grad[rows], down[e], out=grad_hidden[rows])
            start += n
        grad_hidden.mul_(hidden).mul_(2)
        start = 0
        for e, n in enumerate(ctx.counts):
            rows = slice(start, start + n)
            torch.mm(grad_hidden[rows].t(), x[rows], out=grad_up[e])
            torch.mm(grad_hidden[rows], up[e], out=grad_x[rows])
            start += n
        return grad_x, grad_up, grad_down, None


class MLP(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.up_proj = Linear(width, inner)
        self.down_proj = Linear(inner, width, 0.5)

    def forward(self, u):
        return self.down_proj(F.relu(self.up_proj(u)).square())


class LatentMoE(nn.Module):
    """Router and shared expert read the full width, routed experts a latent."""

    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        self.gate = Router(s)
        self.fc1_latent_proj = Linear(s.hidden_size, s.moe_latent_size)
        self.fc2_latent_proj = Linear(s.moe_latent_size, s.hidden_size, 0.5)
        self.experts = Experts(s)
        self.shared_experts = MLP(s.hidden_size, s.moe_shared_expert_intermediate_size)

    def forward(self, u):
        flat = u.flatten(0, -2)
        chosen, weights = self.gate(flat)
        latent = self.fc1_latent_proj(flat)
        k = self.s.num_experts_per_tok
        order = chosen.flatten().argsort()
        counts = chosen.flatten().bincount(minlength=self.s.n_routed_experts)
        if self.training:
            self.gate.load += counts
        sorted_rows = GroupedMLP.apply(
            latent[order // k], self.experts.up_proj, self.experts.down_proj, counts.tolist()
        )
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        routed = (sorted_rows[back].view(-1, k, latent.shape[-1]) * weights[..., None]).sum(1)
        out = self.fc2_latent_proj(routed) + self.shared_experts(flat)
        return out.view_as(u)


MIXERS = {"M": Mamba2, "*": Attention, "E": LatentMoE}


class Block(nn.Module):
    def __init__(self, kind: str, s: Shape):
        super().__init__()
        self.norm = RMSNorm(s.hidden_size, s.layer_norm_epsilon)
        self.mixer = MIXERS[kind](s)

    def forward(self, x):
        return x + self.mixer(self.norm(x))


class Backbone(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.embeddings = nn.Embedding(s.vocab_size, s.hidden_size)
        self.layers = nn.ModuleList(Block(kind, s) for kind in s.hybrid_override_pattern)
        self.norm_f = RMSNorm(s.hidden_size, s.layer_norm_epsilon)

    def forward(self, ids):
        x = self.embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm_f(x)


class MultiTokenPrediction(nn.Module):
    """The draft block: guesses the token after the next one.

    Reads the true next token and the main model's hidden state, and shares
    embedding and head with it.
    """

    def __init__(self, s: Shape):
        super().__init__()
        self.layers = nn.ModuleList(Block(kind, s) for kind in s.mtp_hybrid_override_pattern)
        first, last = self.layers[0], self.layers[-1]
        first.enorm = RMSNorm(s.hidden_size, s.layer_norm_epsilon)
        first.hnorm = RMSNorm(s.hidden_size, s.layer_norm_epsilon)
        first.eh_proj = Linear(2 * s.hidden_size, s.hidden_size)
        last.final_layernorm = RMSNorm(s.hidden_size, s.layer_norm_epsilon)

    def forward(self, next_embeddings, hidden):
        first, last = self.layers[0], self.layers[-1]
        x = first.eh_proj(torch.cat([first.enorm(next_embeddings), first.hnorm(hidden)], -1))
        for layer in self.layers:
            x = layer(x)
        return last.final_layernorm(x)


class NemotronH(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.shape = s
        self.backbone = Backbone(s)
        self.lm_head = Linear(s.hidden_size, s.vocab_size)
        self.mtp = MultiTokenPrediction(s)

    def forward(self, ids):
        """Logits of the next token at every position."""
        return self.lm_head(self.backbone(ids))

    def draft_hidden(self, ids, hidden):
        """Hidden states that predict `ids[i + 2]` at position i."""
        return self.mtp(self.backbone.embeddings(ids[:, 1:]), hidden[:, :-1])

    def routers(self):
        return [m for m in self.modules() if isinstance(m, Router)]
