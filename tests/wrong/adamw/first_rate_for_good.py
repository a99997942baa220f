"""mistake: foreach-lr-fixed-at-the-start

Single and multi tensor functions; the second is handed the learning rate of the constructor."""

import copy
import math
from collections import defaultdict

import torch


class AdamW:
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, *, foreach=False):
        if not 0.0 <= lr:
            raise ValueError(f"Invalid learning rate: {lr}")
        if not 0.0 <= eps:
            raise ValueError(f"Invalid epsilon value: {eps}")
        if not 0.0 <= betas[0] < 1.0:
            raise ValueError(f"Invalid beta parameter at index 0: {betas[0]}")
        if not 0.0 <= betas[1] < 1.0:
            raise ValueError(f"Invalid beta parameter at index 1: {betas[1]}")
        if not 0.0 <= weight_decay:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        params = list(params)
        if len(params) == 0:
            raise ValueError("optimizer got an empty parameter list")
        group = dict(params=params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, foreach=foreach)
        self.param_groups = [group]
        self.state = defaultdict(dict)
        self._lr0 = lr

    lr = property(lambda self: self.param_groups[0]["lr"], lambda self, x: self.param_groups[0].update(lr=x))
    betas = property(
        lambda self: self.param_groups[0]["betas"], lambda self, x: self.param_groups[0].update(betas=x)
    )
    eps = property(
        lambda self: self.param_groups[0]["eps"], lambda self, x: self.param_groups[0].update(eps=x)
    )
    weight_decay = property(
        lambda self: self.param_groups[0]["weight_decay"],
        lambda self, x: self.param_groups[0].update(weight_decay=x),
    )

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            ps, gs, ms, vs, steps = [], [], [], [], []
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if len(state) == 0:
                    state["step"] = torch.tensor(0.0, dtype=torch.float64)
                    state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                    state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                ps.append(p)
                gs.append(p.grad)
                ms.append(state["exp_avg"])
                vs.append(state["exp_avg_sq"])
                steps.append(state["step"])
            fn = _multi_tensor_adamw if group["foreach"] else _single_tensor_adamw
            beta1, beta2 = group["betas"]
            fn(
                ps,
                gs,
                ms,
                vs,
                steps,
                beta1=beta1,
                beta2=beta2,
                lr=self._lr0 if group["foreach"] else group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
            )

    def zero_grad(self, set_to_none=True):
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                if set_to_none:
                    p.grad = None
                else:
                    p.grad.requires_grad_(False)
                    p.grad.zero_()

    def state_dict(self):
        g = self.param_groups[0]
        packed = {}
        for i, p in enumerate(g["params"]):
            if p in self.state:
                packed[i] = copy.deepcopy(self.state[p])
                packed[i]["step"] = int(packed[i]["step"].item())
        return {k: g[k] for k in ("lr", "betas", "eps", "weight_decay")} | {"state": packed}

    def load_state_dict(self, saved):
        saved = copy.deepcopy(saved)
        params = self.param_groups[0]["params"]
        for i, s in saved["state"].items():
            if not (0 <= i < len(params)):
                raise ValueError(f"loaded state dict has a parameter {i}, the optimizer {len(params)}")
            if not (s["exp_avg"].shape == s["exp_avg_sq"].shape == params[i].shape):
                raise ValueError(
                    f"loaded {s['exp_avg'].shape}, {s['exp_avg_sq'].shape}, but have {params[i].shape}"
                )
        self.param_groups[0].update({k: v for k, v in saved.items() if k != "state"})
        self.state = defaultdict(dict)
        for i, s in saved["state"].items():
            s["step"] = torch.tensor(float(s["step"]), dtype=torch.float64)
            self.state[params[i]] = s


def _single_tensor_adamw(
    params, grads, exp_avgs, exp_avg_sqs, state_steps, *, beta1, beta2, lr, weight_decay, eps
):
    for param, grad, exp_avg, exp_avg_sq, step_t in zip(params, grads, exp_avgs, exp_avg_sqs, state_steps):
        step_t += 1
        param.mul_(1 - lr * weight_decay)
        exp_avg.lerp_(grad, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad.conj(), value=1 - beta2)
        step = step_t.item()
        bias_correction1 = 1 - beta1**step
        bias_correction2 = 1 - beta2**step
        step_size = lr / bias_correction1
        denom = (exp_avg_sq.sqrt() / math.sqrt(bias_correction2)).add_(eps)
        param.addcdiv_(exp_avg, denom, value=-step_size)


def _multi_tensor_adamw(
    params, grads, exp_avgs, exp_avg_sqs, state_steps, *, beta1, beta2, lr, weight_decay, eps
):
    grouped = defaultdict(list)
    for row in zip(params, grads, exp_avgs, exp_avg_sqs, state_steps):
        grouped[row[0].device, row[0].dtype].append(row)
    for rows in grouped.values():
        ps, gs, ms, vs, ts = (list(col) for col in zip(*rows))
        torch._foreach_add_(ts, torch.tensor(1.0), alpha=1.0)
        if weight_decay != 0:
            torch._foreach_mul_(ps, 1 - lr * weight_decay)
        torch._foreach_lerp_(ms, gs, 1 - beta1)
        torch._foreach_mul_(vs, beta2)
        torch._foreach_addcmul_(vs, gs, gs, 1 - beta2)
        bc1 = [1 - beta1 ** float(t) for t in ts]
        bc2 = [1 - beta2 ** float(t) for t in ts]
        step_size = [(lr / bc) * -1 for bc in bc1]
        sq = torch._foreach_sqrt(vs)
        torch._foreach_div_(sq, [bc**0.5 for bc in bc2])
        torch._foreach_add_(sq, eps)
        torch._foreach_addcdiv_(ps, ms, sq, step_size)
