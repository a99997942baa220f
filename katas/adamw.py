"""AdamW, the optimiser that trains nearly every transformer.

    AdamW(params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, *, foreach=False)

params is any iterable of leaf tensors, each float64, float32 or bfloat16, of any shape and memory layout.

    optimiser.step()                  one step for every parameter that has a gradient
    optimiser.zero_grad()             afterwards every gradient is None or zero, as you like
    optimiser.state_dict()            a snapshot: see below
    optimiser.load_state_dict(saved)  go on from a snapshot
    optimiser.lr, .betas, .eps, .weight_decay
                                      may be assigned to between steps, and count from the next step on,
                                      in the corrections too: 1 − βᵗ with β as it is then

- The rule is that of torch.optim.AdamW: decoupled decay, by the factor 1 − lr·weight_decay, before the
  update; both moments are corrected for their bias; eps is added to the root of the corrected second moment.
- A parameter whose gradient is None is left out of the step altogether. Each parameter counts its own
  steps, the first of them as 1.
- Parameters are changed in place: a view taken before shows the new values. Gradients are left as they
  were. No step is recorded by autograd, also if the gradients are, and autograd is on or off as before.
- Nothing is shared, neither between parameters nor between optimisers, those over the same parameters
  included.
- ValueError, with the values received, if params is empty, if lr, eps or weight_decay is negative, or if a
  beta is outside [0, 1).

state_dict() is {"lr": …, "betas": …, "eps": …, "weight_decay": …, "state": {i: {"step": int,
"exp_avg": Tensor, "exp_avg_sq": Tensor}}}: for the i-th parameter (from 0) how many steps it has taken, and
its two moments as they are before correction, in its shape and, unless that is bfloat16, its dtype. A
parameter that never had a gradient has no entry. Later steps do not change the dict.

load_state_dict(saved) replaces everything that state_dict() tells of, so that a run which goes on from it
equals one that never stopped; saved is left alone, also by later steps. ValueError, and nothing has
changed, if a state is for a parameter that does not exist, or of another shape.

Part 2. With foreach=True the results are the same, and the number of torch operations that compute
something in a step (views do not count) is independent of the number of parameters, if all are of one
dtype, have taken equally many steps before, at least one, and hold fewer than 100,000 elements together.

Example, with weight_decay=0.5 and lr=0.1: for p = [2.] and the gradient [5.], the first step makes
p = 2·0.95 − 0.1 = 1.8; with the gradient [0.] it would make 1.9, with None it would stay 2.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor


class AdamW:
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
        raise NotImplementedError

    def step(self) -> None:
        raise NotImplementedError

    def zero_grad(self) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        raise NotImplementedError
