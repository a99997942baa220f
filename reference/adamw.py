r"""AdamW: Adam whose weight decay shrinks the weights themselves and never enters the gradient.

    m ← β₁ m + (1 − β₁) g                    v ← β₂ v + (1 − β₂) g²
    θ ← (1 − lr·λ) θ − lr · m̂ / (√v̂ + ε)     m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

m and v start at zero, so that after t steps they are the mean and the mean square of the gradients
times 1 − βᵗ; dividing by that takes the bias back out, and the first step is lr·sign(g) whatever the size
of g. Were λθ added to g instead (Adam with L2), it too would be divided by √v̂, and the weights with
large gradients would hardly decay.

Conventions are PyTorch's: t counts the steps of each parameter on its own; without a gradient nothing
happens, no decay either; ε is added to the root of the corrected v. Moments have the parameter's dtype.

Both forms compute θ ← θ − (lr·√c₂/c₁) · m / (√v + ε·√c₂), c = 1 − βᵗ, which saves a pass over the
denominators. The loop walks in pieces that stay in the cache through all its operations: time is memory
traffic. foreach runs each operation over many small parameters in one call: their time is launches.
State costs two numbers a weight.

Sources: Loshchilov & Hutter, Decoupled Weight Decay Regularization, 2019, arXiv:1711.05101 (Algorithm 2);
Kingma & Ba, Adam, 2015, arXiv:1412.6980 (Algorithm 1). As in PyTorch, and unlike Algorithm 2, the decay
is multiplied by lr itself and comes before the update.
"""

import math
from collections.abc import Iterable, Iterator
from copy import deepcopy
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor

PIECE = 262_144


class AdamW:
    """Optimises ``params`` in place. The four hyperparameters are read at every step."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        foreach: bool = False,
    ) -> None:
        """Raises ValueError if there are no parameters or a hyperparameter is out of range."""
        self.params, self.foreach = list(params), foreach
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self._state: dict[int, dict[str, Any]] = {}
        if not self.params:
            raise ValueError("there are no parameters")
        # Written so that NaN fails.
        if not (min(lr, eps, weight_decay) >= 0 and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"got lr {lr}, betas {betas}, eps {eps} and weight_decay {weight_decay}")

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        live = [i for i, p in enumerate(self.params) if p.grad is not None]
        for i in live:
            self._tick(i)
        if self.foreach:
            # In runs of about a piece: the roots of all parameters at once would not fit the cache.
            ends = accumulate(self.params[i].numel() for i in live)
            for _, run in groupby(zip(live, ends, strict=True), key=lambda item: item[1] // PIECE):
                self._move_together([i for i, _ in run])
        else:
            for i in live:
                self._move(i)

    def zero_grad(self) -> None:
        """Let go of the gradients, so that the next backward pass starts anew."""
        for p in self.params:
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of all that the next steps depend on, besides parameters and gradients."""
        kept = {"lr": self.lr, "betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}
        return kept | {"state": deepcopy(self._state)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where ``saved`` was taken. Raises ValueError, and changes nothing, if it does not fit."""
        for i, state in saved["state"].items():
            shape = self.params[i].shape if 0 <= i < len(self.params) else None
            if not state["exp_avg"].shape == state["exp_avg_sq"].shape == shape:
                raise ValueError(f"state {i} of shape {state['exp_avg'].shape} is for a parameter of {shape}")
        self.lr, self.betas = saved["lr"], saved["betas"]
        self.eps, self.weight_decay = saved["eps"], saved["weight_decay"]
        self._state = deepcopy(saved["state"])

    def _tick(self, i: int) -> None:
        """Count a step of parameter i, from zero moments if it is the first."""
        if i not in self._state:
            zeros = torch.zeros_like(self.params[i])
            self._state[i] = {"step": 0, "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
        self._state[i]["step"] += 1

    def _corrected(self, step: int) -> tuple[float, float]:
        """lr·√c₂/c₁ and ε·√c₂."""
        root = math.sqrt(1 - self.betas[1] ** step)
        return self.lr * root / (1 - self.betas[0] ** step), self.eps * root

    def _move(self, i: int) -> None:
        p, state, (beta1, beta2) = self.params[i], self._state[i], self.betas
        rate, floor = self._corrected(state["step"])
        for w, g, m, v in _pieces(p, p.grad, state["exp_avg"], state["exp_avg_sq"]):
            w.mul_(1 - self.lr * self.weight_decay)
            m.lerp_(g, 1 - beta1)
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            w.addcdiv_(m, v.sqrt().add_(floor), value=-rate)

    def _move_together(self, live: list[int]) -> None:
        ps, states, (beta1, beta2) = (
            [self.params[i] for i in live],
            [self._state[i] for i in live],
            self.betas,
        )
        gs, ms, vs = [p.grad for p in ps], [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        corrected = [self._corrected(s["step"]) for s in states]
        torch._foreach_mul_(ps, 1 - self.lr * self.weight_decay)
        torch._foreach_lerp_(ms, gs, 1 - beta1)
        torch._foreach_mul_(vs, beta2)
        torch._foreach_addcmul_(vs, gs, gs, 1 - beta2)
        roots = torch._foreach_sqrt(vs)
        torch._foreach_add_(roots, [floor for _, floor in corrected])
        torch._foreach_addcdiv_(ps, ms, roots, [-rate for rate, _ in corrected])


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors side by side in flat pieces of PIECE elements; whole, if one of them cannot be flat."""
    if all(x.is_contiguous() for x in tensors):
        return zip(*(x.view(-1).split(PIECE) for x in tensors), strict=True)
    return iter([tensors])
