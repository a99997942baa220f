"""mistake: eps-under-the-root

The paper's formulas, with eps under the root."""

import torch


class AdamW:
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, *, foreach=False):
        self.params = [p for p in params]
        if len(self.params) == 0:
            raise ValueError("optimizer got an empty parameter list")
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0.0:
                raise ValueError(f"invalid {name}: {value}")
        for b in betas:
            if not 0.0 <= b < 1.0:
                raise ValueError(f"invalid beta: {betas}")
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.foreach = foreach
        self.m = [None] * len(self.params)
        self.v = [None] * len(self.params)
        self.t = [0] * len(self.params)

    def step(self):
        with torch.no_grad():
            if self.foreach:
                return self.step_together()
            for i, p in enumerate(self.params):
                g = p.grad
                if g is None:
                    continue
                self.begin(i)
                b1, b2 = self.betas
                self.m[i] = b1 * self.m[i] + (1 - b1) * g
                self.v[i] = b2 * self.v[i] + (1 - b2) * g**2
                m_hat = self.m[i] / (1 - b1 ** self.t[i])
                v_hat = self.v[i] / (1 - b2 ** self.t[i])
                new = p - self.lr * self.weight_decay * p
                new = new - self.lr * m_hat / torch.sqrt(v_hat + self.eps)
                p.copy_(new)

    def begin(self, i):
        if self.t[i] == 0:
            self.m[i] = torch.zeros_like(self.params[i])
            self.v[i] = torch.zeros_like(self.params[i])
        self.t[i] += 1

    def step_together(self):
        live = [i for i, p in enumerate(self.params) if p.grad is not None]
        for i in live:
            self.begin(i)
        for t, dtype in sorted({(self.t[i], str(self.params[i].dtype)) for i in live}):
            group = [i for i in live if self.t[i] == t and str(self.params[i].dtype) == dtype]
            p, g = [self.params[i] for i in group], [self.params[i].grad for i in group]
            b1, b2 = self.betas
            m = torch._foreach_mul([self.m[i] for i in group], b1)
            m = torch._foreach_add(m, g, alpha=1 - b1)
            v = torch._foreach_mul([self.v[i] for i in group], b2)
            v = torch._foreach_add(v, torch._foreach_mul(torch._foreach_mul(g, g), 1 - b2))
            for i, a, b in zip(group, m, v):
                self.m[i], self.v[i] = a, b
            up = torch._foreach_div(m, 1 - b1**t)
            down = torch._foreach_sqrt(torch._foreach_add(torch._foreach_div(v, 1 - b2**t), self.eps))
            torch._foreach_mul_(p, 1 - self.lr * self.weight_decay)
            torch._foreach_sub_(p, torch._foreach_mul(torch._foreach_div(up, down), self.lr))

    def zero_grad(self):
        for p in self.params:
            if p.grad is not None:
                p.grad.detach_()
                p.grad.zero_()

    def state_dict(self):
        state = {}
        for i in range(len(self.params)):
            if self.t[i]:
                state[i] = {"step": self.t[i], "exp_avg": self.m[i].clone(), "exp_avg_sq": self.v[i].clone()}
        return {
            "state": state,
            "lr": self.lr,
            "betas": self.betas,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }

    def load_state_dict(self, saved):
        n = len(self.params)
        t, m, v = [0] * n, [None] * n, [None] * n
        for i, s in saved["state"].items():
            if i not in range(n):
                raise ValueError(f"no parameter {i}")
            for key in ("exp_avg", "exp_avg_sq"):
                if s[key].shape != self.params[i].shape:
                    raise ValueError(f"{key} of {i}: {tuple(s[key].shape)}")
            t[i], m[i], v[i] = s["step"], s["exp_avg"].clone(), s["exp_avg_sq"].clone()
        self.t, self.m, self.v = t, m, v
        for key in ("lr", "betas", "eps", "weight_decay"):
            setattr(self, key, saved[key])
