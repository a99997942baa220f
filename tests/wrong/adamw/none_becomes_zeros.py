"""mistake: no-gradient-is-zero

Coroutines; whoever has no gradient is given one of zeros."""

import copy

import torch


def walker(p, box):
    """Moves ``p`` at each send; ``box`` holds what is to be remembered."""
    while True:
        lr, (b1, b2), eps, decay = yield
        g, w = p.grad.detach().double(), p.detach().double()
        if not box:
            box.update(step=0, exp_avg=torch.zeros_like(p).detach(), exp_avg_sq=torch.zeros_like(p).detach())
        box["step"] += 1
        t = box["step"]
        m = box["exp_avg"].double() * b1 + g * (1 - b1)
        v = box["exp_avg_sq"].double() * b2 + g * g * (1 - b2)
        box["exp_avg"], box["exp_avg_sq"] = m.to(p.dtype), v.to(p.dtype)
        rate = (m / (1 - b1**t)) / ((v / (1 - b2**t)) ** 0.5 + eps)
        p.detach().copy_(w - lr * decay * w - lr * rate)


class AdamW:
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, *, foreach=False):
        beta1, beta2 = betas
        for name, number, top in (
            ("lr", lr, float("inf")),
            ("eps", eps, float("inf")),
            ("weight_decay", weight_decay, float("inf")),
            ("beta1", beta1, 1.0),
            ("beta2", beta2, 1.0),
        ):
            if number < 0 or number >= top:
                raise ValueError(f"{name} = {number} is not in [0, {top})")
        self.lr, self.betas, self.eps, self.weight_decay = lr, [beta1, beta2], eps, weight_decay
        self.together = foreach
        self.params, self.boxes, self.walkers = [], [], []
        for p in params:
            self.params.append(p)
            self._new(len(self.params) - 1, {})
        if not self.params:
            raise ValueError(f"nothing to optimise: {self.params}")

    def _new(self, i, box):
        self.boxes[i : i + 1] = [box]
        self.walkers[i : i + 1] = [walker(self.params[i], box)]
        next(self.walkers[i])

    def step(self):
        for p in self.params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        settings = (self.lr, self.betas, self.eps, self.weight_decay)
        live = [i for i, p in enumerate(self.params) if p.grad is not None]
        if not self.together:
            for i in live:
                self.walkers[i].send(settings)
            return
        ages = {}
        for i in live:
            ages.setdefault((self.params[i].dtype, self.boxes[i].get("step", 0) + 1), []).append(i)
        with torch.no_grad():
            for (_, t), members in ages.items():
                self._jointly(t, members, *settings)

    def _jointly(self, t, members, lr, betas, eps, decay):
        ps = [self.params[i] for i in members]
        boxes = [self.boxes[i] for i in members]
        if t == 1:
            for p, box in zip(ps, boxes):
                box.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        gs = [p.grad for p in ps]
        m, v = ([box[key] for box in boxes] for key in ("exp_avg", "exp_avg_sq"))
        for box in boxes:
            box["step"] = t
        torch._foreach_lerp_(m, gs, 1 - betas[0])
        torch._foreach_lerp_(v, torch._foreach_mul(gs, gs), 1 - betas[1])
        root = torch._foreach_sqrt(torch._foreach_div(v, 1 - betas[1] ** t))
        torch._foreach_add_(root, eps)
        step = torch._foreach_div(torch._foreach_div(m, 1 - betas[0] ** t), root)
        torch._foreach_add_(step, torch._foreach_mul(ps, decay))
        torch._foreach_sub_(ps, torch._foreach_mul(step, lr))

    @torch.no_grad()
    def zero_grad(self, set_to_none=False):
        for p in self.params:
            if p.grad is not None:
                p.grad = None if set_to_none else torch.zeros_like(p.grad)

    def state_dict(self):
        return {
            "lr": self.lr,
            "betas": tuple(self.betas),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "state": {i: copy.deepcopy(box) for i, box in enumerate(self.boxes) if box},
        }

    def load_state_dict(self, saved):
        wanted = dict(enumerate(tuple(p.shape) for p in self.params))
        for i, box in saved["state"].items():
            found = {tuple(box["exp_avg"].shape), tuple(box["exp_avg_sq"].shape)}
            if i not in wanted or found != {wanted[i]}:
                raise ValueError(f"state {i} has shapes {found}, parameters have {wanted}")
        for i in wanted:
            self._new(i, copy.deepcopy(saved["state"].get(i, {})))
        self.lr, self.betas = saved["lr"], saved["betas"]
        self.eps, self.weight_decay = saved["eps"], saved["weight_decay"]
