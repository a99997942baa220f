"""mistake: looks-ahead

Nesterov's m: the new gradient counts twice."""

import copy

import torch


class AdamW:
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, *, foreach=False):
        self.params = list(params)
        if not self.params:
            raise ValueError(f"got an empty parameter list: {self.params}")
        if lr < 0:
            raise ValueError(f"invalid lr {lr}")
        if eps < 0:
            raise ValueError(f"invalid eps {eps}")
        if weight_decay < 0:
            raise ValueError(f"invalid weight_decay {weight_decay}")
        for b in betas:
            if not 0.0 <= b < 1.0:
                raise ValueError(f"invalid betas {betas}")
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.foreach = foreach
        self.state = {}

    @torch.no_grad()
    def step(self):
        b1, b2 = self.betas
        active = []
        for i, p in enumerate(self.params):
            if p.grad is None:
                continue
            if i not in self.state:
                dt = torch.float32 if p.dtype == torch.bfloat16 else p.dtype
                self.state[i] = {
                    "step": 0,
                    "exp_avg": torch.zeros_like(p, dtype=dt),
                    "exp_avg_sq": torch.zeros_like(p, dtype=dt),
                }
            active.append((p, self.state[i]))
        if self.foreach:
            groups = {}
            for p, s in active:
                groups.setdefault(p.dtype, []).append((p, s))
            for members in groups.values():
                self._many(members)
            return
        for p, s in active:
            g = p.grad
            s["step"] += 1
            t = s["step"]
            m, v = s["exp_avg"], s["exp_avg_sq"]
            g = g.to(m.dtype)
            m.mul_(b1).add_(g, alpha=1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            mhat = (b1 * m + (1 - b1) * g) / (1 - b1**t)
            vhat = v / (1 - b2**t)
            w = p.to(m.dtype) * (1 - self.lr * self.weight_decay)
            w = w - self.lr * mhat / (vhat.sqrt() + self.eps)
            p.copy_(w)

    def _many(self, members):
        b1, b2 = self.betas
        ps = [p for p, _ in members]
        ms = [s["exp_avg"] for _, s in members]
        vs = [s["exp_avg_sq"] for _, s in members]
        gs = [p.grad for p in ps]
        for _, s in members:
            s["step"] += 1
        ts = [s["step"] for _, s in members]
        low = ps[0].dtype != ms[0].dtype
        if low:
            gs = [g.float() for g in gs]
            ws = [p.float() for p in ps]
        else:
            ws = ps
        torch._foreach_mul_(ws, 1 - self.lr * self.weight_decay)
        torch._foreach_mul_(ms, b1)
        torch._foreach_add_(ms, gs, alpha=1 - b1)
        torch._foreach_mul_(vs, b2)
        torch._foreach_addcmul_(vs, gs, gs, value=1 - b2)
        den = torch._foreach_div(vs, [1 - b2**t for t in ts])
        torch._foreach_sqrt_(den)
        torch._foreach_add_(den, self.eps)
        torch._foreach_addcdiv_(ws, ms, den, [-self.lr / (1 - b1**t) for t in ts])
        if low:
            for p, w in zip(ps, ws):
                p.copy_(w)

    def zero_grad(self):
        for p in self.params:
            p.grad = None

    def state_dict(self):
        return copy.deepcopy(
            {
                "lr": self.lr,
                "betas": self.betas,
                "eps": self.eps,
                "weight_decay": self.weight_decay,
                "state": self.state,
            }
        )

    def load_state_dict(self, saved):
        for i, s in saved["state"].items():
            if not 0 <= i < len(self.params):
                raise ValueError(f"state for parameter {i}, have {len(self.params)}")
            for key in ("exp_avg", "exp_avg_sq"):
                if s[key].shape != self.params[i].shape:
                    raise ValueError(
                        f"shape {tuple(s[key].shape)} of state {i}, parameter has {tuple(self.params[i].shape)}"
                    )
        saved = copy.deepcopy(saved)
        self.lr, self.betas, self.eps, self.weight_decay = (
            saved["lr"],
            saved["betas"],
            saved["eps"],
            saved["weight_decay"],
        )
        self.state = saved["state"]
