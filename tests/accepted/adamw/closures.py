"""A pure update function that yields new values; the state in a dict keyed by position, steps as tensors;
moments kept corrected-free; decay and update in one linear interpolation; foreach through stacked groups."""

import copy
import math

import torch


def adamw(p, g, m, v, t, lr, b1, b2, eps, decay):
    m = torch.lerp(m, g.to(m.dtype), 1 - b1)
    v = torch.addcmul(v * b2, g.to(v.dtype), g.to(v.dtype), value=1 - b2)
    size = lr / (1 - b1**t)
    root = v.sqrt() / math.sqrt(1 - b2**t) + eps
    return p - (lr * decay) * p - size * (m / root), m, v


class AdamW(object):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, *, foreach=False):
        if not (0.0 <= lr and 0.0 <= eps and 0.0 <= weight_decay):
            raise ValueError((lr, eps, weight_decay))
        if any(b < 0 or b >= 1 for b in betas):
            raise ValueError(betas)
        self.group = {"params": list(params), "foreach": foreach}
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        if self.group["params"] == []:
            raise ValueError("no parameters")
        self.state = {}

    def step(self):
        was = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        try:
            ready = {i: p for i, p in enumerate(self.group["params"]) if p.grad is not None}
            for i, p in ready.items():
                if i not in self.state:
                    zeros = p.new_zeros(p.shape), p.new_zeros(p.shape)
                    self.state[i] = {"step": torch.tensor(0), "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}
            if self.group["foreach"]:
                torch._foreach_add_([self.state[i]["step"] for i in ready], 1) if ready else None
                # Parameters of one dtype and shape are stacked, and moved as one.
                alike = {}
                for i, p in ready.items():
                    alike.setdefault((p.dtype, int(self.state[i]["step"])), []).append(i)
                for (_, t), group in alike.items():
                    self.stacked(group, t)
            else:
                for i, p in ready.items():
                    s = self.state[i]
                    s["step"] += 1
                    new, s["exp_avg"], s["exp_avg_sq"] = adamw(
                        p, p.grad, s["exp_avg"], s["exp_avg_sq"], s["step"].item(), *self.hyper()
                    )
                    p.copy_(new)
        finally:
            torch.set_grad_enabled(was)

    def hyper(self):
        return self.lr, *self.betas, self.eps, self.weight_decay

    def stacked(self, group, t):
        ps, states = [self.group["params"][i] for i in group], [self.state[i] for i in group]
        rows = (ps, [p.grad for p in ps], [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states])
        long = [torch.cat([x.reshape(-1) for x in row]) for row in rows]
        new = adamw(*long, t, *self.hyper())
        for row, x in zip((rows[0], rows[2], rows[3]), new):
            pieces = x.split([p.numel() for p in ps])
            torch._foreach_copy_(row, [piece.view(p.shape) for piece, p in zip(pieces, ps)])

    def zero_grad(self):
        for p in self.group["params"]:
            if p.grad is not None:
                p.grad = torch.zeros_like(p.grad)

    def state_dict(self):
        state = copy.deepcopy(self.state)
        for s in state.values():
            s["step"] = s["step"].item()
        return {
            "lr": self.lr,
            "betas": list(self.betas),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "state": state,
        }

    def load_state_dict(self, saved):
        shapes = {i: p.shape for i, p in enumerate(self.group["params"])}
        for i, s in saved["state"].items():
            if shapes.get(i) != s["exp_avg"].shape or shapes.get(i) != s["exp_avg_sq"].shape:
                raise ValueError(f"state {i} fits no parameter: {shapes}")
        saved = copy.deepcopy(saved)
        self.state = saved["state"]
        for s in self.state.values():
            s["step"] = torch.tensor(s["step"])
        self.lr, self.betas, self.eps, self.weight_decay = (
            saved[k] for k in ("lr", "betas", "eps", "weight_decay")
        )
