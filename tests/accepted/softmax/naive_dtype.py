"""No upcast: every intermediate is kept in the input's dtype (torch sums half types in float32 itself)."""


def softmax(x, dim):
    e = (x - x.max(dim, keepdim=True)[0]).exp()
    return e / e.sum(dim, keepdim=True)


def log_softmax(x, dim):
    s = x - x.max(dim, keepdim=True)[0]
    return s - s.exp().sum(dim, keepdim=True).log()


def cross_entropy(logits, targets, *, ignore_index=-100):
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"{tuple(targets.shape)} against {tuple(logits.shape)}")
    logits, targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    index = (targets != ignore_index).nonzero()[:, 0]
    logits, targets = logits[index], targets[index]
    if len(targets) and (targets.min() < 0 or targets.max() >= logits.shape[1]):
        raise ValueError(f"{targets.tolist()} outside [0, {logits.shape[1]})")
    return -log_softmax(logits, 1)[range(len(targets)), targets].mean()
