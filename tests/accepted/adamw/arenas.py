"""Both moments of a parameter side by side in one buffer, scratch that is kept between the steps, every write in
place; one function for both forms, in float32 for bfloat16."""

import torch


class AdamW:
    __slots__ = ("params", "lr", "betas", "eps", "weight_decay", "foreach", "_arena", "_steps", "_scratch")

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, *, foreach=False):
        self.params = [*params]
        if not self.params:
            raise ValueError("params is empty")
        if lr < 0.0:
            raise ValueError("lr = %r" % lr)
        if eps < 0.0:
            raise ValueError("eps = %r" % eps)
        if weight_decay < 0.0:
            raise ValueError("weight_decay = %r" % weight_decay)
        if min(betas) < 0.0 or max(betas) >= 1.0:
            raise ValueError("betas = %r" % (betas,))
        self.lr, self.betas, self.eps, self.weight_decay, self.foreach = lr, betas, eps, weight_decay, foreach
        n = len(self.params)
        self._arena = [None] * n  # (2, *shape): m and v side by side
        self._steps = [0] * n
        self._scratch = [None] * n

    def _ensure(self, i):
        p = self.params[i]
        if self._arena[i] is None:
            kind = torch.float32 if p.dtype == torch.bfloat16 else p.dtype
            self._arena[i] = torch.zeros((2, *p.shape), dtype=kind, device=p.device)
        if self._scratch[i] is None:
            self._scratch[i] = torch.empty((2, *p.shape), dtype=self._arena[i].dtype, device=p.device)

    def step(self):
        with torch.no_grad():
            live = []
            for i, p in enumerate(self.params):
                if p.grad is not None:
                    self._ensure(i)
                    self._steps[i] += 1
                    live.append(i)
            if self.foreach:
                buckets = {}
                for i in live:
                    buckets.setdefault(self.params[i].dtype, []).append(i)
                for bucket in buckets.values():
                    self._run(bucket)
            else:
                for i in live:
                    self._run([i])

    def _run(self, ids):
        b1, b2 = self.betas
        ps = [self.params[i] for i in ids]
        ms = [self._arena[i][0] for i in ids]
        vs = [self._arena[i][1] for i in ids]
        gs = [self._scratch[i][0] for i in ids]
        ws = [self._scratch[i][1] for i in ids]
        torch._foreach_copy_(gs, [p.grad for p in ps])
        torch._foreach_mul_(ms, b1)
        torch._foreach_add_(ms, gs, alpha=1.0 - b1)
        torch._foreach_mul_(gs, gs)
        torch._foreach_lerp_(vs, gs, 1.0 - b2)
        # gs now holds the denominators
        torch._foreach_copy_(gs, vs)
        torch._foreach_div_(gs, [1.0 - b2 ** self._steps[i] for i in ids])
        torch._foreach_sqrt_(gs)
        torch._foreach_add_(gs, self.eps)
        torch._foreach_copy_(ws, ps)
        torch._foreach_mul_(ws, 1.0 - self.lr * self.weight_decay)
        torch._foreach_addcdiv_(ws, ms, gs, [-self.lr / (1.0 - b1 ** self._steps[i]) for i in ids])
        torch._foreach_copy_(ps, ws)

    def zero_grad(self):
        with torch.no_grad():
            for p in self.params:
                if p.grad is not None:
                    p.grad.zero_()

    def state_dict(self):
        state = {
            i: {"step": t, "exp_avg": self._arena[i][0].clone(), "exp_avg_sq": self._arena[i][1].clone()}
            for i, t in enumerate(self._steps)
            if t > 0
        }
        return {
            "lr": self.lr,
            "betas": self.betas,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "state": state,
        }

    def load_state_dict(self, saved):
        n = len(self.params)
        for i, s in saved["state"].items():
            if not 0 <= i < n:
                raise ValueError("state %d, but %d params" % (i, n))
            for k in ("exp_avg", "exp_avg_sq"):
                if s[k].size() != self.params[i].size():
                    raise ValueError("state %d %s %s" % (i, k, tuple(s[k].size())))
        self._steps[:] = [0] * n
        for arena in self._arena:
            if arena is not None:
                arena.zero_()
        for i, s in saved["state"].items():
            self._ensure(i)
            self._arena[i][0].copy_(s["exp_avg"])
            self._arena[i][1].copy_(s["exp_avg_sq"])
            self._steps[i] = s["step"]
        self.lr = saved["lr"]
        self.betas = saved["betas"]
        self.eps = saved["eps"]
        self.weight_decay = saved["weight_decay"]
