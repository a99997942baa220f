"""NumPy in float64 within, rounded once at the end of a step; moments in float64 between snapshots would not
survive the snapshot's dtype, so they are kept in the parameter's own (bfloat16: float32)."""

import numpy as np
import torch


def wide(x):
    return x.detach().double().numpy()


class AdamW:
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, *, foreach=False):
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.foreach, self.params = foreach, tuple(params)
        self.slots = {}
        bad = lr < 0 or np.isnan(lr) or eps < 0 or weight_decay < 0
        if bad or not self.params or min(betas) < 0 or max(betas) >= 1:
            raise ValueError(f"{lr=} {betas=} {eps=} {weight_decay=} {len(self.params)=}")

    def step(self):
        live = [(i, p) for i, p in enumerate(self.params) if p.grad is not None]
        if not live:
            return
        b1, b2 = self.betas
        for i, p in live:
            kind = torch.float32 if p.dtype == torch.bfloat16 else p.dtype
            if i not in self.slots:
                self.slots[i] = [0, torch.zeros(p.shape, dtype=kind), torch.zeros(p.shape, dtype=kind)]
            self.slots[i][0] += 1
        if self.foreach:
            return self.flat(live)
        for i, p in live:
            slot, g = self.slots[i], wide(p.grad)
            t = slot[0]
            m = b1 * wide(slot[1]) + (1 - b1) * g
            v = b2 * wide(slot[2]) + (1 - b2) * np.square(g)
            slot[1:] = [torch.tensor(x).to(old.dtype) for x, old in zip((m, v), slot[1:])]
            update = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + self.eps)
            p.data.copy_(torch.tensor(wide(p) * (1 - self.lr * self.weight_decay) - self.lr * update))

    @torch.no_grad()
    def flat(self, live):
        """Everything in one long row, and the corrections repeated for every element."""
        b1, b2 = self.betas
        sizes = [p.numel() for _, p in live]
        slots = [self.slots[i] for i, _ in live]
        g = torch.cat([p.grad.reshape(-1) for _, p in live]).double()
        m = torch.cat([s[1].reshape(-1) for s in slots]).double() * b1 + (1 - b1) * g
        v = torch.cat([s[2].reshape(-1) for s in slots]).double() * b2 + (1 - b2) * g * g
        steps = torch.tensor([s[0] for s in slots], dtype=torch.float64)
        steps = steps.repeat_interleave(torch.tensor(sizes))
        update = m / (1 - b1**steps) / ((v / (1 - b2**steps)).sqrt() + self.eps)
        p = torch.cat([p.reshape(-1) for _, p in live]).double() * (1 - self.lr * self.weight_decay)
        shapes = [p.shape for _, p in live]
        for where, x in (
            ([p for _, p in live], p - self.lr * update),
            ([s[1] for s in slots], m),
            ([s[2] for s in slots], v),
        ):
            torch._foreach_copy_(where, [y.view(shape) for y, shape in zip(x.split(sizes), shapes)])

    def zero_grad(self):
        for p in self.params:
            p.grad = None

    def state_dict(self):
        keys = ("step", "exp_avg", "exp_avg_sq")
        state = {i: dict(zip(keys, [s[0], s[1].clone(), s[2].clone()])) for i, s in self.slots.items()}
        return dict(lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, state=state)

    def load_state_dict(self, saved):
        slots = {}
        for i, s in saved["state"].items():
            shapes = {s["exp_avg"].shape, s["exp_avg_sq"].shape}
            if i not in range(len(self.params)) or shapes != {self.params[i].shape}:
                raise ValueError(f"state {i} does not fit")
            slots[i] = [s["step"], s["exp_avg"].clone(), s["exp_avg_sq"].clone()]
        self.slots = slots
        self.__dict__.update({k: saved[k] for k in ("lr", "betas", "eps", "weight_decay")})
