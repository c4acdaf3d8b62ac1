"""The meta-gradient by PyTorch double backward: the reference for speed and value.

The same algorithm as `distill_jax.core`, as lean as PyTorch allows. Parameters are
plain tensors; only theta_t is kept from step t, no graph is; the way back through the
unroll takes one Hessian-vector product per step,

    d/d(theta, x, y_logits) <grad_theta loss(theta_t, d_t), v>,

from a graph made and freed within that step; the real batch goes in chunks. The models
read the parameter trees of `distill_jax.models` (see `as_torch`), in the dense form:
TextCNN is an ordinary convolution and max, which was the fastest of three on a CPU.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill_jax.models.fourier_bag import KERNEL_SCALE, SCALE, frequencies

Tree = Any


def as_torch(tree: Tree) -> Tree:
    """Nested dicts of arrays as the same dicts of tensors."""
    if isinstance(tree, Mapping):
        return {name: as_torch(leaf) for name, leaf in tree.items()}
    return torch.from_numpy(np.array(tree))


def text_cnn(params: Tree, x: Tensor, mask: Tensor | None) -> Tensor:
    """Logits `[B, C]` of `distill_jax.models.text_cnn`, widths in rising order."""
    D = x.shape[-1]
    if mask is not None:
        x = x * mask[..., None]
        hidden = mask == 0
        hidden[:, 0] = False
    pooled = []
    for name in sorted(params["conv"], key=int):
        group = params["conv"][name]
        k = int(name)
        kernel = group["kernel"].view(-1, k, D).transpose(1, 2)
        scores = F.conv1d(F.pad(x.transpose(1, 2), (0, k - 1)), kernel, group["bias"])
        if mask is not None:
            scores = scores.masked_fill(hidden[:, None], -torch.inf)
        pooled.append(scores.max(-1).values)
    h = torch.cat(pooled, -1).relu()
    if "hidden" in params:
        h = _dense(params["hidden"], h)
    return _dense(params["out"], h)


def bag(params: Tree, x: Tensor, mask: Tensor | None) -> Tensor:
    """Logits `[B, C]` of `distill_jax.models.bag`."""
    return _dense(params["out"], _dense(params["hidden"], _mean(x, mask)).relu())


def mean_cnn(params: Tree, x: Tensor, mask: Tensor | None) -> Tensor:
    """Logits `[B, C]` of `distill_jax.models.mean_cnn`, widths in rising order."""
    D = x.shape[-1]
    weight = torch.ones_like(x[..., :1]) if mask is None else mask[..., None]
    x = (x * weight).transpose(1, 2)
    pooled = []
    for name in sorted(set(params) - {"out"}, key=lambda name: int(name[5:])):
        kernel = (
            params[name]["kernel"].t().reshape(-1, len(params[name]["kernel"]) // D, D)
        )
        after = F.pad(x, (0, kernel.shape[1] - 1))
        scores = F.conv1d(after, kernel.transpose(1, 2), params[name]["bias"])
        pooled.append((scores.relu() * weight.transpose(1, 2)).sum(-1))
    h = torch.cat(pooled, -1) / weight.sum(1).clamp(min=1)
    return _dense(params["out"], h)


def fourier_part(theta_0: Tree, x: Tensor, mask: Tensor | None) -> Tensor:
    """What has no parameters in `fourier_bag`, of single words, not centred."""
    count = len(theta_0["hidden"]["kernel"]) // 2
    omega = frequencies(x.shape[-1], count, KERNEL_SCALE)
    z = x @ torch.from_numpy(omega).to(x.dtype)
    return _mean(torch.cat([z.cos(), z.sin()], -1), mask) / count**0.5


def fourier_bag(params: Tree, d: Tensor, mask: Tensor | None) -> Tensor:
    """Logits `[B, C]` of `distill_jax.models.fourier_bag`, of its frozen part."""
    return _dense(params["out"], _dense(params["hidden"], SCALE * d).tanh())


def bilstm(params: Tree, x: Tensor, mask: Tensor | None) -> Tensor:
    """Logits `[B, C]` of `distill_jax.models.bilstm`."""
    for i in range(len(params) - 1):
        x = _bilstm_layer(params[f"layer_{i}"], x, mask)
    return _dense(params["out"], _mean(x, mask))


def _bilstm_layer(params: Tree, x: Tensor, mask: Tensor | None) -> Tensor:
    B, L, D = x.shape
    H = params["bias"].shape[-1]
    z = torch.addmm(
        params["bias"].view(-1), x.reshape(-1, D), params["input"].view(D, -1)
    )
    z = z.view(B, L, 2, 4 * H).permute(1, 2, 0, 3)
    # Step t reads token t forwards and token L - 1 - t backwards.
    z = torch.stack([z[:, 0], z[:, 1].flip(0)], 1)
    state = params["state"].view(2, H, 4 * H)
    keep = None
    if mask is not None:
        keep = mask.t()[..., None]
        keep = torch.stack([keep, keep.flip(0)], 1)
    h = c = x.new_zeros(2, B, H)
    states = []
    for t in range(L):
        i, f, g, o = torch.baddbmm(z[t], h, state).chunk(4, -1)
        new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        new_h = o.sigmoid() * new_c.tanh()
        h = new_h if keep is None else torch.lerp(h, new_h, keep[t])
        c = new_c if keep is None else torch.lerp(c, new_c, keep[t])
        states.append(h)
    h = torch.stack(states)
    return torch.cat([h[:, 0], h[:, 1].flip(0)], -1).transpose(0, 1)


def bilstm_once(params: Tree, x: Tensor, mask: Tensor | None) -> Tensor:
    """The same by PyTorch's fused LSTM, which has a first derivative only.

    Raises:
        ValueError: if there is padding before a real token.
    """
    B, L, _ = x.shape
    if mask is not None:
        length, place = mask.sum(1, keepdim=True).long(), torch.arange(L)[None]
        if not torch.equal(mask != 0, place < length):
            raise ValueError("the fused LSTM needs all padding at the end")
        turned = torch.where(place < length, length - 1 - place, place)
        rows = torch.arange(B)[:, None]
    for i in range(len(params) - 1):
        W, U, b = (params[f"layer_{i}"][name] for name in ("input", "state", "bias"))
        H = b.shape[-1]
        sides = [
            [
                W[:, d].reshape(-1, 4 * H).t(),
                U[d].reshape(H, 4 * H).t(),
                b[d].reshape(-1),
                b.new_zeros(4 * H),
            ]
            for d in range(2)
        ]
        zero = x.new_zeros(2, B, H)
        if mask is None:
            x = _fused(x, zero, sides[0] + sides[1], True)
            continue
        forward = _fused(x, zero[:1], sides[0], False)
        backward = _fused(x[rows, turned], zero[:1], sides[1], False)
        x = torch.cat([forward, backward[rows, turned]], -1)
    return _dense(params["out"], _mean(x, mask))


def _fused(x: Tensor, zero: Tensor, weights: list[Tensor], both: bool) -> Tensor:
    return torch._VF.lstm(  # type: ignore[attr-defined]
        x, (zero, zero), weights, True, 1, 0.0, True, both, True
    )[0]


def transformer(params: Tree, x: Tensor, mask: Tensor | None) -> Tensor:
    """Logits `[B, C]` of `distill_jax.models.transformer`."""
    B, L, _ = x.shape
    x = _dense(params["input"], x)
    width = x.shape[-1]
    rate = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angle = torch.arange(L, dtype=torch.float64)[:, None] * rate
    x = x + params["position"] * torch.cat([angle.sin(), angle.cos()], 1).to(x.dtype)
    unseen = None if mask is None else (mask == 0)[:, None, None, :]
    for i in range(len([name for name in params if name.startswith("qkv_")])):
        h = _norm(params[f"norm_attention_{i}"], x)
        kernel, bias = params[f"qkv_{i}"]["kernel"], params[f"qkv_{i}"]["bias"]
        _, _, heads, size = kernel.shape
        qkv = F.linear(h, kernel.reshape(width, -1).t(), bias.reshape(-1))
        q, k, v = qkv.view(B, L, 3, heads, size).permute(2, 0, 3, 1, 4)
        scores = (q * size**-0.5) @ k.transpose(-1, -2)
        if unseen is not None:
            scores = scores.masked_fill(unseen, torch.finfo(x.dtype).min)
        h = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, L, width)
        out = params[f"attention_{i}"]
        x = x + F.linear(h, out["kernel"].reshape(width, -1).t(), out["bias"])
        h = _norm(params[f"norm_mlp_{i}"], x)
        h = F.gelu(_dense(params[f"mlp_in_{i}"], h), approximate="tanh")
        x = x + _dense(params[f"mlp_out_{i}"], h)
    return _dense(params["out"], _mean(_norm(params["norm_out"], x), mask))


MODELS: dict[str, Callable[..., Tensor]] = {
    "text_cnn": text_cnn,
    "kim_cnn": text_cnn,
    "bag": bag,
    "mean_cnn": mean_cnn,
    "fourier_bag": fourier_bag,
    "bilstm": bilstm,
    "transformer": transformer,
}

# Parts without parameters, done once: `(theta_0, x, mask) -> d`.
FROZEN: dict[str, Callable[..., Tensor]] = {"fourier_bag": fourier_part}

# Faster where only a first derivative is asked for.
FIRST_ORDER: dict[str, Callable[..., Tensor]] = MODELS | {"bilstm": bilstm_once}


def meta_gradient(
    model: str,
    theta_0: Tree,
    x: Tensor,
    y_logits: Tensor,
    raw_lr: Tensor,
    real_x: Tensor,
    real_mask: Tensor,
    real_y: Tensor,
    *,
    momentum: float = 0.0,
    chunk: int = 64,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Real-data loss after the unroll, and its gradient for the distilled data.

    Args:
        model: name in `MODELS`.
        theta_0: parameters, as `as_torch` gives them; not changed.
        x: distilled sentences `[S, B, L, D]`.
        y_logits: `[S, B, C]`; the labels are their softmax.
        raw_lr: `[E, S]`; the step sizes are their softplus.
        real_x: embedded real sentences `[N, L, D]`.
        real_mask: `[N, L]`; padding is at the end of a sentence.
        real_y: class probabilities `[N, C]`; rows of zeros count for nothing.
        momentum: of the inner SGD, in [0, 1); as `optax.trace`.
        chunk: real examples in one forward and backward pass.

    Returns:
        The loss in nats, and gradients by name: `x`, `y_logits`, `raw_lr`.

    Raises:
        ValueError: on an unknown model.
    """
    if model not in MODELS:
        raise ValueError(f"unknown model {model!r}, known: {', '.join(MODELS)}")
    names, theta = _flatten(theta_0)
    frozen = FROZEN.get(model)
    if frozen is not None:
        (words,) = _leaves([x.flatten(0, 1)])
        read = frozen(theta_0, words, None)
        x = read.detach().view(*x.shape[:2], -1)
        parts = [slice(i, i + chunk) for i in range(0, real_y.shape[0], chunk)]
        real_x = torch.cat([frozen(theta_0, real_x[i], real_mask[i]) for i in parts])
    lr = F.softplus(raw_lr)
    steps = [(e, s) for e in range(lr.shape[0]) for s in range(lr.shape[1])]

    def inner_loss(network, leaves, x, logits):
        log_probs = network(_tree(names, leaves), x, None).log_softmax(-1)
        return -(logits.softmax(-1) * log_probs).sum() / x.shape[0]

    kept, velocities = [], []
    velocity = [torch.zeros_like(p) for p in theta]
    for e, s in steps:
        leaves = _leaves(theta)
        before = inner_loss(FIRST_ORDER[model], leaves, x[s], y_logits[s])
        grad = torch.autograd.grad(before, leaves)
        kept.append(theta)
        if momentum:
            velocity = [momentum * u + g for u, g in zip(velocity, grad, strict=True)]
            velocities.append(velocity)
            grad = velocity
        theta = [p - lr[e, s] * u for p, u in zip(theta, grad, strict=True)]

    leaves = _leaves(theta)
    count = (real_y != 0).any(-1).sum().clamp(min=1)
    loss, a_theta = x.new_zeros(()), [torch.zeros_like(p) for p in theta]
    for start in range(0, real_y.shape[0], chunk):
        rows = slice(start, start + chunk)
        logits = FIRST_ORDER[model](_tree(names, leaves), real_x[rows], real_mask[rows])
        part = -(real_y[rows] * logits.log_softmax(-1)).sum() / count
        grad = torch.autograd.grad(part, leaves)
        loss = loss + part.detach()
        a_theta = [a + g for a, g in zip(a_theta, grad, strict=True)]

    # a_theta and a_velocity: gradients of the loss for what leaves step t.
    a_velocity = [torch.zeros_like(p) for p in theta]
    d_x, d_y = torch.zeros_like(x), torch.zeros_like(y_logits)
    d_lr = torch.zeros_like(lr)
    for t in reversed(range(len(steps))):
        e, s = steps[t]
        leaves = _leaves(kept[t])
        sentence, logits = _leaves([x[s], y_logits[s]])
        before = inner_loss(MODELS[model], leaves, sentence, logits)
        grad = torch.autograd.grad(before, leaves, create_graph=True)
        direction = velocities[t] if momentum else [g.detach() for g in grad]
        d_lr[e, s] = -sum(
            (u * a).sum() for u, a in zip(direction, a_theta, strict=True)
        )
        v = [
            momentum * b - lr[e, s] * a
            for a, b in zip(a_theta, a_velocity, strict=True)
        ]
        *H_theta, H_x, H_y = torch.autograd.grad(
            grad, [*leaves, sentence, logits], v, materialize_grads=True
        )
        a_theta = [a + h for a, h in zip(a_theta, H_theta, strict=True)]
        a_velocity = v
        d_x[s] += H_x
        d_y[s] += H_y
    if frozen is not None:
        (d_words,) = torch.autograd.grad(read, words, d_x.flatten(0, 1))
        d_x = d_words.view(*x.shape[:2], *words.shape[1:])
    return loss, {"x": d_x, "y_logits": d_y, "raw_lr": d_lr * raw_lr.sigmoid()}


def _dense(params: Tree, x: Tensor) -> Tensor:
    return F.linear(x, params["kernel"].t(), params["bias"])


def _norm(params: Tree, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], params["scale"], params["bias"], 1e-6)


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return x.mean(1)
    return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def _leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [p.detach().requires_grad_() for p in tensors]


def _flatten(tree: Tree) -> tuple[list[tuple[str, ...]], list[Tensor]]:
    if not isinstance(tree, Mapping):
        return [()], [tree]
    names, leaves = [], []
    for name, branch in tree.items():
        inner, found = _flatten(branch)
        names += [(name, *rest) for rest in inner]
        leaves += found
    return names, leaves


def _tree(names: list[tuple[str, ...]], leaves: list[Tensor]) -> Tree:
    tree: Tree = {}
    for path, leaf in zip(names, leaves, strict=True):
        branch = tree
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        branch[path[-1]] = leaf
    return tree
