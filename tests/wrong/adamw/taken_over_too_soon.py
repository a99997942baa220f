"""mistake: half-loaded

The formulas on the whiteboard; loading assigns lr, betas, eps and weight_decay first."""

import torch


class AdamW:
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, *, foreach=False):
        self.params = [p for p in params]
        if len(self.params) == 0:
            raise ValueError("got an empty params: []")
        if lr < 0 or eps < 0 or weight_decay < 0:
            raise ValueError(f"lr={lr} eps={eps} weight_decay={weight_decay}")
        b1, b2 = betas
        if not 0 <= b1 < 1 or not 0 <= b2 < 1:
            raise ValueError(f"betas={betas}")
        self.lr, self.betas, self.eps, self.weight_decay, self.foreach = lr, betas, eps, weight_decay, foreach
        self.m = [None] * len(self.params)
        self.v = [None] * len(self.params)
        self.t = [0] * len(self.params)

    def step(self):
        todo = [i for i, p in enumerate(self.params) if p.grad is not None]
        for i in todo:
            if self.m[i] is None:
                self.m[i] = torch.zeros_like(self.params[i].data)
                self.v[i] = torch.zeros_like(self.params[i].data)
            self.t[i] += 1
        if not self.foreach:
            for i in todo:
                self._one(i)
            return
        kinds = {}
        for i in todo:
            kinds.setdefault((self.params[i].dtype, self.t[i]), []).append(i)
        for ids in kinds.values():
            self._many(ids)

    def _one(self, i):
        p, g = self.params[i].data, self.params[i].grad.data
        b1, b2 = self.betas
        self.m[i] = b1 * self.m[i] + (1 - b1) * g
        self.v[i] = b2 * self.v[i] + (1 - b2) * g**2
        m_hat = self.m[i] / (1 - b1 ** self.t[i])
        v_hat = self.v[i] / (1 - b2 ** self.t[i])
        p -= self.lr * (m_hat / (v_hat.sqrt() + self.eps) + self.weight_decay * p)

    def _many(self, ids):
        b1, b2 = self.betas
        t = self.t[ids[0]]
        p = [self.params[i].data for i in ids]
        g = [self.params[i].grad.data for i in ids]
        m, v = [self.m[i] for i in ids], [self.v[i] for i in ids]
        m = torch._foreach_add(torch._foreach_mul(m, b1), torch._foreach_mul(g, 1 - b1))
        v = torch._foreach_add(
            torch._foreach_mul(v, b2), torch._foreach_mul(torch._foreach_mul(g, g), 1 - b2)
        )
        for i, a, b in zip(ids, m, v):
            self.m[i], self.v[i] = a, b
        den = torch._foreach_add(torch._foreach_sqrt(torch._foreach_div(v, 1 - b2**t)), self.eps)
        upd = torch._foreach_div(torch._foreach_div(m, 1 - b1**t), den)
        torch._foreach_add_(upd, torch._foreach_mul(p, self.weight_decay))
        torch._foreach_add_(p, upd, alpha=-self.lr)

    def zero_grad(self):
        for p in self.params:
            if p.grad is not None:
                p.grad = torch.zeros_like(p.grad)

    def state_dict(self):
        state = {}
        for i, t in enumerate(self.t):
            if t:
                state[i] = dict(step=t, exp_avg=self.m[i].clone(), exp_avg_sq=self.v[i].clone())
        return dict(lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, state=state)

    def load_state_dict(self, saved):
        self.lr, self.betas, self.eps, self.weight_decay = (
            saved[k] for k in ("lr", "betas", "eps", "weight_decay")
        )
        m, v, t = ([None] * len(self.params), [None] * len(self.params), [0] * len(self.params))
        for i, s in saved["state"].items():
            if i not in range(len(self.params)):
                raise ValueError(f"no parameter {i} of {len(self.params)}")
            for key in ("exp_avg", "exp_avg_sq"):
                if s[key].shape != self.params[i].shape:
                    raise ValueError(f"{key} {tuple(s[key].shape)} vs {tuple(self.params[i].shape)}")
            m[i], v[i], t[i] = s["exp_avg"].clone(), s["exp_avg_sq"].clone(), s["step"]
        self.m, self.v, self.t = m, v, t
