"""mistake: foreach-decay-lost-in-bfloat16

The parameters decay after a copy in float32 was taken, and the copy is written back."""

import copy
import math

import torch


class AdamW:
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, *, foreach=False):
        self.params = list(params)
        if not self.params:
            raise ValueError("params is empty")
        if lr < 0 or eps < 0 or weight_decay < 0:
            raise ValueError(f"negative: lr {lr} eps {eps} weight_decay {weight_decay}")
        if any(not 0 <= b < 1 for b in betas):
            raise ValueError(f"betas {betas}")
        self.lr, self.betas, self.eps, self.weight_decay, self.foreach = lr, betas, eps, weight_decay, foreach
        self.state = {}

    @torch.no_grad()
    def step(self):
        todo = [(i, p) for i, p in enumerate(self.params) if p.grad is not None]
        for i, p in todo:
            if i not in self.state:
                dt = torch.float32 if p.dtype == torch.bfloat16 else p.dtype
                self.state[i] = {
                    "step": 0,
                    "exp_avg": torch.zeros_like(p, dtype=dt),
                    "exp_avg_sq": torch.zeros_like(p, dtype=dt),
                }
        b1, b2 = self.betas
        if self.foreach:
            groups = {}
            for i, p in todo:
                groups.setdefault((p.dtype, self.state[i]["step"]), []).append((i, p))
            for (dtype, t), items in groups.items():
                self._flat(items, t + 1, b1, b2)
            return
        for i, p in todo:
            s = self.state[i]
            s["step"] += 1
            t = s["step"]
            m, v = s["exp_avg"], s["exp_avg_sq"]
            g = p.grad.to(m.dtype)
            m.copy_(b1 * m + (1 - b1) * g)
            v.copy_(b2 * v + (1 - b2) * g * g)
            mh = m / (1 - b1**t)
            vh = v / (1 - b2**t)
            new = p.to(m.dtype) * (1 - self.lr * self.weight_decay) - self.lr * mh / (vh.sqrt() + self.eps)
            p.copy_(new)

    def _flat(self, items, t, b1, b2):
        ps = [p for _, p in items]
        ms = [self.state[i]["exp_avg"] for i, _ in items]
        vs = [self.state[i]["exp_avg_sq"] for i, _ in items]
        gs = [p.grad for p in ps]
        if ps[0].dtype == torch.bfloat16:
            gs = [g.float() for g in gs]
            work = [p.float() for p in ps]
        else:
            work = ps
        torch._foreach_mul_(ps, 1 - self.lr * self.weight_decay)
        torch._foreach_mul_(ms, b1)
        torch._foreach_add_(ms, gs, alpha=1 - b1)
        torch._foreach_mul_(vs, b2)
        torch._foreach_addcmul_(vs, gs, gs, value=1 - b2)
        d = torch._foreach_sqrt(vs)
        torch._foreach_div_(d, math.sqrt(1 - b2**t))
        torch._foreach_add_(d, self.eps)
        torch._foreach_addcdiv_(work, ms, d, value=-self.lr / (1 - b1**t))
        if work is not ps:
            torch._foreach_copy_(ps, work)
        for i, _ in items:
            self.state[i]["step"] = t

    def zero_grad(self):
        for p in self.params:
            p.grad = None

    def state_dict(self):
        return {
            "lr": self.lr,
            "betas": self.betas,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "state": copy.deepcopy(self.state),
        }

    def load_state_dict(self, saved):
        for i, s in saved["state"].items():
            if not 0 <= i < len(self.params):
                raise ValueError(f"no parameter {i}")
            for k in ("exp_avg", "exp_avg_sq"):
                if s[k].shape != self.params[i].shape:
                    raise ValueError(f"shape {s[k].shape} for {self.params[i].shape}")
        self.state = copy.deepcopy(saved["state"])
        self.lr, self.betas, self.eps, self.weight_decay = (
            saved[k] for k in ("lr", "betas", "eps", "weight_decay")
        )
