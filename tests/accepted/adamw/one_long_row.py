"""All parameters of a dtype in one long row, moved as one whatever foreach says; where a gradient is missing
a mask puts back what was there. Steps are a tensor, corrections go through expm1, and setters watch over the
hyperparameters."""

import math

import torch

HYPER = ("lr", "betas", "eps", "weight_decay")


class Row:
    """The moments of the parameters of one dtype, end to end."""

    def __init__(self, numbers, params):
        self.numbers, self.params = numbers, params
        self.sizes = torch.tensor([p.numel() for p in params])
        kind = params[0].dtype
        self.both = torch.zeros(2, int(self.sizes.sum()), dtype=kind)
        self.steps = torch.zeros(len(params), dtype=torch.int64)

    def long(self, tensors):
        return torch.cat([x.detach().reshape(-1) for x in tensors])

    def move(self, lr, betas, eps, decay):
        live = torch.tensor([p.grad is not None for p in self.params])
        if not live.any():
            return
        self.steps += live
        g = self.long(
            [torch.zeros(p.shape, dtype=p.dtype) if p.grad is None else p.grad for p in self.params]
        )
        old = self.long(self.params)
        here = live.repeat_interleave(self.sizes)
        log = [math.log(b) if b else -math.inf for b in betas]
        c1, c2 = (
            -torch.expm1(self.steps.clamp(min=1).double() * x).repeat_interleave(self.sizes) for x in log
        )
        b1, b2 = betas
        wide = torch.float32 if g.dtype == torch.bfloat16 else g.dtype
        g, w, both = g.to(wide), old.to(wide), self.both.to(wide)
        weights = torch.tensor([[b1], [b2]], dtype=wide)
        both = both * weights + torch.stack([g, g * g]) * torch.tensor([[1 - b1], [1 - b2]], dtype=wide)
        m, v = both[0] / c1.to(wide), both[1] / c2.to(wide)
        new = w - lr * (decay * w + m / (v.sqrt() + eps))
        self.both = torch.where(here, both.to(self.both.dtype), self.both)
        pieces = torch.where(here, new.to(old.dtype), old).split(self.sizes.tolist())
        shaped = [x.view(p.shape) for x, p in zip(pieces, self.params)]
        torch._foreach_copy_([p.detach() for p in self.params], shaped)

    def snapshot(self):
        pieces = self.both.split(self.sizes.tolist(), dim=1)
        for i, p, t, (m, v) in zip(self.numbers, self.params, self.steps.tolist(), pieces):
            if t:
                shape = p.shape
                yield (
                    i,
                    {"step": t, "exp_avg": m.clone().view(shape), "exp_avg_sq": v.clone().view(shape)},
                )

    def load(self, state):
        flat = [
            torch.stack([state[i][key].to(p.dtype).reshape(-1) for key in ("exp_avg", "exp_avg_sq")])
            if i in state
            else torch.zeros(2, p.numel(), dtype=p.dtype)
            for i, p in zip(self.numbers, self.params)
        ]
        self.both = torch.cat(flat, dim=1)
        self.steps = torch.tensor([state[i]["step"] if i in state else 0 for i in self.numbers])


class AdamW:
    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        *,
        foreach=False,
        verbose=False,
    ):
        params = list(params)
        if not params:
            raise ValueError("AdamW wants at least one parameter, got []")
        self._shapes = [p.shape for p in params]
        self._rows = []
        for kind in sorted({str(p.dtype) for p in params}):
            numbers = [i for i, p in enumerate(params) if str(p.dtype) == kind]
            self._rows.append(Row(numbers, [params[i] for i in numbers]))
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay

    def __setattr__(self, name, value):
        if name == "betas":
            value = tuple(value)
            if any(not 0 <= b < 1 for b in value):
                raise ValueError(f"betas {value}")
        elif name in HYPER and value < 0:
            raise ValueError(f"{name} {value}")
        object.__setattr__(self, name, value)

    def step(self):
        with torch.no_grad():
            for row in self._rows:
                row.move(*(getattr(self, name) for name in HYPER))

    def zero_grad(self):
        for row in self._rows:
            for p in row.params:
                p.grad = None

    def state_dict(self):
        state = dict(sorted(pair for row in self._rows for pair in row.snapshot()))
        return {name: getattr(self, name) for name in HYPER} | {"state": state}

    def load_state_dict(self, saved):
        for i, one in saved["state"].items():
            fits = 0 <= i < len(self._shapes) and one["exp_avg"].shape == one["exp_avg_sq"].shape
            if not fits or one["exp_avg"].shape != self._shapes[i]:
                raise ValueError(f"no place for state {i}")
        for name in HYPER:
            setattr(self, name, saved[name])
        for row in self._rows:
            row.load(saved["state"])
