"""Trains the demo model on a CPU, by the clock.

Two single-threaded processes average their gradients every step. On a machine
that is also building something, that beats one process with two threads: no
thread ever spins waiting for a descheduled neighbour inside a matrix product.

The schedule follows the clock because the speed of a shared machine is not
known beforehand: 40 warm-up steps, flat, then linear to zero over the last
35 % of the time.
"""

import argparse
import os
import time
from collections import deque
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import Tokenizer

from chat import encode
from generate import documents
from model import Experts, NemotronH, Router, Shape

DOCUMENTS_PER_SHARD = 3000
WARMUP_STEPS, DECAY_FROM = 40, 0.65
MUON_LR, ADAM_LR, ROUTER_LR, BIAS_STEP = 0.012, 2e-3, 3e-4, 1e-2
MTP_WEIGHT = 0.3
ROUND_LENGTH = 8


def batches(tokenizer, seed, tokens):
    """Batches (ids, weights) of about `tokens` tokens, rows of like length.

    Lengths are rounded up, and a batch waits until it is full: matrix products
    come in few shapes then, and a CPU library compiles its kernels by shape.
    """
    waiting, shard = {}, 0
    while True:
        for doc in documents(f"{seed}/{shard}", DOCUMENTS_PER_SHARD):
            ids, weights = encode(doc, tokenizer)
            length = -(-len(ids) // ROUND_LENGTH) * ROUND_LENGTH
            pad = [0] * (length - len(ids))
            group = waiting.setdefault(length, [])
            group.append((ids + pad, weights + pad))
            if len(group) >= tokens // length:
                yield tuple(map(torch.tensor, zip(*waiting.pop(length))))
        shard += 1


def token_loss(model, states, targets, weights):
    """Weighted mean cross-entropy; the head sees only what has a weight."""
    used = weights.flatten().nonzero()[:, 0]
    kept = F.pad(used, (0, -len(used) % 128))  # weightless rows, for an even shape
    weights = weights.flatten()[kept]
    weights[len(used) :] = 0
    each = F.cross_entropy(model.lm_head(states.flatten(0, 1)[kept]), targets.flatten()[kept], reduction="none")
    return (each * weights).sum() / weights.sum()


def losses(model, ids, weights):
    """The loss of the next token and that of the drafted one after it."""
    hidden = model.backbone(ids)
    main = token_loss(model, hidden[:, :-1], ids[:, 1:], weights[:, 1:])
    draft = token_loss(model, model.draft_hidden(ids, hidden)[:, :-1], ids[:, 2:], weights[:, 2:])
    return main, draft


def orthogonal(g):
    """Newton-Schulz: all singular values of the matrices pushed towards 1."""
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.transpose(-1, -2)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.transpose(-1, -2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.transpose(-1, -2) if tall else x).float()


class Muon:
    """Momentum, orthogonalised; matrices of one shape share one call."""

    def __init__(self, params, momentum=0.95):
        self.momentum = momentum
        self.groups = {}
        for p in params:
            self.groups.setdefault(p.shape[-2:], []).append(p)
        self.velocity = {
            shape: torch.zeros(sum(p[..., 0, 0].numel() for p in group), *shape) for shape, group in self.groups.items()
        }

    @torch.no_grad()
    def step(self, lr):
        for shape, group in self.groups.items():
            grad = torch.cat([p.grad.view(-1, *shape) for p in group])
            velocity = self.velocity[shape].mul_(self.momentum).add_(grad)
            update = orthogonal(grad + self.momentum * velocity) * max(1, shape[0] / shape[1]) ** 0.5
            for p, u in zip(group, update.split([p[..., 0, 0].numel() for p in group])):
                p.sub_(lr * u.view_as(p))


def split_parameters(model):
    """(Muon's matrices, router matrices, everything else)."""
    routers = [m.weight for m in model.modules() if isinstance(m, Router)]
    experts = [p for m in model.modules() if isinstance(m, Experts) for p in m.parameters()]
    outer = [model.backbone.embeddings.weight, model.lm_head.weight]
    taken = {id(p) for p in routers + experts + outer}
    rest = [p for p in model.parameters() if id(p) not in taken]
    matrices = [p for p in rest if p.ndim == 2]
    return matrices + experts, routers, outer + [p for p in rest if p.ndim != 2]


def average(model, done):
    """Gradients, router loads and progress become the mean of all ranks.

    The progress travels too, or two clocks would let the weights drift apart.
    """
    shared = [p.grad for p in model.parameters()] + [router.load for router in model.routers()]
    flat = torch.cat([t.flatten() for t in shared] + [torch.tensor([done])])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for t, mean in zip(shared, flat[:-1].split([t.numel() for t in shared])):
        t.copy_(mean.view_as(t))
    return flat[-1].item()


def rate(step, done):
    return min(1, (step + 1) / WARMUP_STEPS) * min(1, max(0, (1 - done) / (1 - DECAY_FROM)))


def train(rank, args):
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")  # bf16 products, fp32 sums
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{args.port}", rank=rank, world_size=args.processes)
    torch.manual_seed(0)
    model = NemotronH(Shape())
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    matrices, routers, rest = split_parameters(model)
    muon = Muon(matrices)
    adam = torch.optim.AdamW(
        [{"params": rest, "base": ADAM_LR}, {"params": routers, "base": ROUTER_LR}], betas=(0.9, 0.98), weight_decay=0
    )
    step, seen, before, begun = 0, 0, 0.0, time.time()
    if args.state.exists():
        state = torch.load(args.state)
        model.load_state_dict(state["model"])
        adam.load_state_dict(state["adam"])
        muon.velocity = state["muon"]
        step, seen, before = state["step"], state["seen"], state["seconds"]
    saved = logged = begun
    torch.manual_seed(1000 * step + rank)
    source = batches(tokenizer, f"train/{step}/{rank}", args.tokens)
    recent = deque(maxlen=50)
    while True:
        done = before + time.time() - begun
        done /= done + max(0, args.until - time.time())
        ids, weights = next(source)
        main, draft = losses(model, ids, weights)
        (main + MTP_WEIGHT * draft).backward()
        seen += ids.numel() * args.processes
        done = average(model, done)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        now = rate(step, done)
        muon.step(MUON_LR * now)
        for group in adam.param_groups:
            group["lr"] = group["base"] * now
        adam.step()
        adam.zero_grad()
        for router in model.routers():
            router.balance(BIAS_STEP * now)
        step += 1
        recent.append((main.item(), draft.item()))
        if rank == 0 and (done >= 1 or time.time() - saved > args.save_every):
            saved = time.time()
            save(args.state, model, adam, muon, step, seen, before + saved - begun)
        if rank == 0 and (done >= 1 or time.time() - logged > 20):
            main_mean, draft_mean = (sum(column) / len(recent) for column in zip(*recent))
            print(
                f"{time.strftime('%H:%M:%S')} done {done:.3f} step {step} tokens {seen / 1e6:.2f}M loss {main_mean:.3f} "
                f"draft {draft_mean:.3f} rate {now:.3f}",
                flush=True,
            )
            logged = time.time()
        if done >= 1:
            break
    dist.destroy_process_group()


def save(path, model, adam, muon, step, seen, seconds):
    """To a neighbour first, then renamed: a crash never costs the last state."""
    new = path.with_suffix(".new")
    torch.save(
        {
            "model": model.state_dict(),
            "adam": adam.state_dict(),
            "muon": muon.velocity,
            "step": step,
            "seen": seen,
            "seconds": seconds,
        },
        new,
    )
    os.replace(new, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=75, help="from now; a resumed run ends then, too")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1500, help="per process and step")
    parser.add_argument(
        "--model", type=Path, default=Path(__file__).parent.parent / "model", help="holds tokenizer.json"
    )
    parser.add_argument("--state", type=Path, default=Path("state.pt"), help="written every few minutes, resumed from")
    parser.add_argument("--save-every", type=float, default=300, help="seconds")
    parser.add_argument("--port", type=int, default=29511)
    args = parser.parse_args()
    args.until = time.time() + 60 * args.minutes
    torch.multiprocessing.spawn(train, (args,), args.processes)
