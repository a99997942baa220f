"""mistake: second-moment-not-corrected

Slots with float32 moments; v is used as it is, in both forms."""

import pickle
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Slot:
    p: Tensor
    m: Tensor
    v: Tensor
    t: int = 0

    @classmethod
    def of(cls, p):
        kind = torch.float32 if p.dtype == torch.bfloat16 else p.dtype
        return cls(p, torch.zeros_like(p, dtype=kind), torch.zeros_like(p, dtype=kind))

    def move(self, lr, b1, b2, eps, decay):
        g = self.p.grad.to(self.m.dtype)
        self.t += 1
        self.m += (g - self.m) * (1 - b1)
        self.v += (g.square() - self.v) * (1 - b2)
        x = self.p.to(self.m.dtype)
        denominator = self.v.sqrt().add_(eps)
        x = x * (1 - lr * decay) - self.m.div(1 - b1**self.t).mul_(lr).div_(denominator)
        self.p.copy_(x)


class AdamW:
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, *, foreach=False):
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.foreach = foreach
        self.slots = [Slot.of(p) for p in params]
        problems = [x for x in (lr, eps, weight_decay) if not x >= 0] + [b for b in betas if not 0 <= b < 1]
        if problems or not self.slots:
            raise ValueError(f"{len(self.slots)} parameters, out of range: {problems}")

    def step(self):
        live = [slot for slot in self.slots if slot.p.grad is not None]
        with torch.no_grad():
            if self.foreach and live:
                self.together(live)
            else:
                for slot in live:
                    slot.move(self.lr, *self.betas, self.eps, self.weight_decay)

    def together(self, live):
        b1, b2 = self.betas
        for slot in live:
            slot.t += 1
        p, g = [s.p for s in live], [s.p.grad for s in live]
        m, v = [s.m for s in live], [s.v for s in live]
        torch._foreach_mul_(m, b1)
        torch._foreach_add_(m, torch._foreach_mul(g, 1 - b1))
        torch._foreach_mul_(v, b2)
        torch._foreach_add_(v, torch._foreach_mul(torch._foreach_pow(g, 2), 1 - b2))
        scale = torch._foreach_sqrt(v)
        torch._foreach_add_(scale, self.eps)
        torch._foreach_reciprocal_(scale)
        torch._foreach_mul_(scale, m)
        torch._foreach_mul_(scale, [-self.lr / (1 - b1**s.t) for s in live])
        torch._foreach_mul_(p, 1 - self.lr * self.weight_decay)
        torch._foreach_add_(p, scale)

    def zero_grad(self):
        for slot in self.slots:
            slot.p.grad = None if slot.p.grad is None else torch.zeros_like(slot.p)

    def state_dict(self):
        state = {
            i: {"step": s.t, "exp_avg": s.m, "exp_avg_sq": s.v} for i, s in enumerate(self.slots) if s.t > 0
        }
        hyper = {name: getattr(self, name) for name in ("lr", "betas", "eps", "weight_decay")}
        return pickle.loads(pickle.dumps({**hyper, "state": state}))

    def load_state_dict(self, saved):
        saved = pickle.loads(pickle.dumps(saved))
        for i, s in saved["state"].items():
            if not 0 <= i < len(self.slots):
                raise ValueError(f"{i} is none of {len(self.slots)} parameters")
            if not s["exp_avg"].shape == s["exp_avg_sq"].shape == self.slots[i].p.shape:
                raise ValueError(f"{i}: {s['exp_avg'].shape} for {self.slots[i].p.shape}")
        self.slots = [Slot.of(slot.p) for slot in self.slots]
        for i, s in saved.pop("state").items():
            self.slots[i].t, self.slots[i].m, self.slots[i].v = s["step"], s["exp_avg"], s["exp_avg_sq"]
        for name, value in saved.items():
            setattr(self, name, value)
