"""Greedy decoding, one token at a time, from carried states.

A second way to compute the model, independent of the chunked scan: rows
advance in step, each fed its prompt first and its own output after, so no
padding and no mask exist here at all.
"""

import torch
import torch.nn.functional as F

from model import Attention, LatentMoE, Mamba2

STOPS = (2, 11)


def mamba_step(mixer, u, state):
    s = mixer.s
    rows = u.shape[0]
    if not state:
        state["conv"] = u.new_zeros(rows, s.conv_kernel, s.mamba_inner + 2 * s.mamba_bc)
        state["ssm"] = u.new_zeros(rows, s.mamba_num_heads, s.mamba_head_dim, s.ssm_state_size)
    z, xbc, dt = mixer.in_proj(u).split([s.mamba_inner, state["conv"].shape[-1], s.mamba_num_heads], -1)
    state["conv"] = torch.cat([state["conv"][:, 1:], xbc[:, None]], 1)
    xbc = F.silu((state["conv"] * mixer.conv1d.weight[:, 0].t()).sum(1) + mixer.conv1d.bias)
    x, b, c = xbc.split([s.mamba_inner, s.mamba_bc, s.mamba_bc], -1)
    x = x.view(rows, s.mamba_num_heads, s.mamba_head_dim)
    per = s.mamba_num_heads // s.n_groups
    b, c = (t.view(rows, s.n_groups, s.ssm_state_size).repeat_interleave(per, 1) for t in (b, c))
    dt = F.softplus(dt + mixer.dt_bias)
    keep = torch.exp(-torch.exp(mixer.A_log) * dt)
    state["ssm"] = state["ssm"] * keep[..., None, None] + (dt[..., None] * x)[..., None] * b[:, :, None]
    y = (state["ssm"] @ c[..., None])[..., 0] + mixer.D[:, None] * x
    v = (y.reshape(rows, -1) * F.silu(z)).view(rows, s.n_groups, -1)
    v = v * torch.rsqrt(v.square().mean(-1, keepdim=True) + s.layer_norm_epsilon)
    return mixer.out_proj(v.flatten(1) * mixer.norm.weight)


def attention_step(mixer, u, state):
    s = mixer.s
    q = mixer.q_proj(u).view(len(u), s.num_key_value_heads, -1, s.head_dim)
    new = [p(u).view(len(u), s.num_key_value_heads, 1, s.head_dim) for p in (mixer.k_proj, mixer.v_proj)]
    state["kv"] = [torch.cat([old, t], 2) for old, t in zip(state["kv"], new)] if state else new
    k, v = state["kv"]
    y = (q @ k.transpose(-1, -2) * s.head_dim**-0.5).softmax(-1) @ v
    return mixer.o_proj(y.flatten(1))


STEPS = {Mamba2: mamba_step, Attention: attention_step, LatentMoE: lambda mixer, u, state: mixer(u)}


@torch.no_grad()
def greedy(model, prompts, limit):
    """For every prompt (token ids) the greedy continuation, stop token included."""
    backbone = model.backbone
    states = [{} for _ in backbone.layers]
    outputs = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    position = 0
    while open_rows:
        ids = [(p + o)[position] if position < len(p) + len(o) else 0 for p, o in zip(prompts, outputs)]
        x = backbone.embeddings(torch.tensor(ids))
        for layer, state in zip(backbone.layers, states):
            x = x + STEPS[type(layer.mixer)](layer.mixer, layer.norm(x), state)
        position += 1
        speaking = [row for row in sorted(open_rows) if position >= len(prompts[row])]
        if not speaking:
            continue
        choices = model.lm_head(backbone.norm_f(x[speaking])).argmax(-1).tolist()
        for row, choice in zip(speaking, choices):
            outputs[row].append(choice)
            if choice in STOPS or len(outputs[row]) == limit:
                open_rows.discard(row)
    return outputs
