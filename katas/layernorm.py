"""Layer normalisation, and batch normalisation in one dimension.

Write two subclasses of torch.nn.Module. Their parameters and buffers have the names, shapes, dtypes and
first values that torch.nn gives them, so that a state_dict of torch's layer loads into yours.

    LayerNorm(dim, *, eps=1e-5)        x (…, dim), any number of leading dimensions, any of them may be 0
        (x − mean) / √(var + eps) · weight + bias, with mean and var over the last dimension.
        weight (dim,) is a parameter of ones, bias (dim,) one of zeros. The same in training and eval.

    BatchNorm1d(num_features, *, eps=1e-5, momentum=0.1)        x (batch, channels) or (batch, channels, length)
        (x − mean) / √(var + eps) · weight + bias, channel by channel (axis 1).
        weight, bias (channels,)                 parameters: ones, zeros
        running_mean, running_var (channels,)    buffers: zeros, ones
        num_batches_tracked ()                   buffer: 0, int64
        training: mean and var over the batch and, if there is one, the length. Each call then moves
                  running_mean and running_var towards them, and adds 1 to num_batches_tracked:
                      running = (1 − momentum) · running + momentum · this batch's
                  with gradients on or off; running statistics never carry a gradient themselves.
        eval:     mean and var are running_mean and running_var; nothing is changed. A batch of 1 is fine.

- The variance that normalises divides by n, the number of values in the mean; the one that goes into
  running_var divides by n − 1.
- x may be float64, float32, float16 or bfloat16, and non-contiguous; it is left alone. Shape, dtype and
  device out are those of x. Parameters and buffers have the dtype of x, or are float32 under a half type.
- For half types mean, variance, eps and x − mean are float32, and so are the running statistics if the
  layer is. Entries may be of any size that float16 holds.
- The mean may be far larger than the deviation: rows around 10,000 in float32, or around ten million in
  float64, with a deviation of 1, come out as right as the rounding of their mean allows (in float32 to
  about 1%).
- Gradients flow by autograd to x, weight and bias; in training also through mean and var.
- ValueError, with the shapes received: if the last dimension of x is not dim; if x is not (batch,
  num_features) or (batch, num_features, length); in training, if a channel has fewer than two values, and
  then no buffer has changed.

Example, fresh layers:

    LayerNorm(2)(tensor([[1., 3.]]))               →  [[−1, 1]]      mean 2, var 1
    BatchNorm1d(1)(tensor([[1.], [3.]]))           →  [[−1], [1]]    and running_mean 0.2, running_var 1.1
    the same layer after .eval(), tensor([[1.3]])  →  [[1.0488]]     1.1 / √1.1
"""

from jaxtyping import Float
from torch import Tensor, nn


class LayerNorm(nn.Module):
    def __init__(self, dim: int, *, eps: float = 1e-5) -> None:
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        raise NotImplementedError


class BatchNorm1d(nn.Module):
    def __init__(self, num_features: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "batch channels *length"]) -> Float[Tensor, "batch channels *length"]:
        raise NotImplementedError
