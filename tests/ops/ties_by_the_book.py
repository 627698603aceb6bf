"""TIES in its authors' words, in float64 NumPy: the truth for the operators and the method."""

import numpy as np


def kept_exactly(magnitude, k):
    """Mask of the k largest, equal ones in order."""
    order = np.lexsort((np.arange(magnitude.size), -magnitude.astype(np.float64)))
    mask = np.zeros(magnitude.size, dtype=bool)
    mask[order[:k]] = True
    return mask


def kept_by_rule(magnitude, density, rule):
    """Mask of one flattened task vector, or of one part of it where a threshold holds."""
    n = magnitude.size
    if n == 0 or density == 1:
        return np.ones(n, dtype=bool)
    if rule == "exact":
        return kept_exactly(magnitude, max(1, int(density * n)))
    smallest = np.sort(magnitude)
    if rule == "official":
        return magnitude >= smallest[n - int(density * n) - 1]
    dropped = int((1 - density) * n + 1e-9)
    return magnitude > smallest[dropped - 1] if dropped else np.ones(n, dtype=bool)


def parts(shapes, scope):
    """Slices of the flattened vector in which a threshold holds."""
    out, start = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        row = max(shape[-1], 1) if shape else 1
        step = row if scope == "row" else max(size, 1)
        out += [slice(i, i + step) for i in range(start, start + size, step)]
        start += size
    return [slice(0, start)] if scope == "global" else out


def votes(d, elect):
    """[N] from trimmed deltas [T, N]."""
    norms = (d**2).sum(1, keepdims=True)
    fraction = d**2 / np.where(norms > 0, norms, 1)
    if elect == "mass":
        return np.add.accumulate(d, 0)[-1]
    if elect == "count":
        return (d > 0).sum(0) - (d < 0).sum(0).astype(float)
    if elect == "normmass":
        return np.add.accumulate(d * fraction, 0)[-1]
    return d[fraction.argmax(0), np.arange(d.shape[1])]


def merged(d, elect="mass", combine="mean", zero_sign="global_majority"):
    """[N] from trimmed deltas [T, N]."""
    sign = np.sign(votes(d, elect))
    matches = None
    if zero_sign == "plus":
        sign = np.where(sign == 0, 1, sign)
    elif zero_sign == "zero":
        matches = d * sign > 0
    else:
        sign = np.where(sign == 0, np.sign(sign.sum()), sign)
    if matches is None:
        matches = np.where(sign > 0, d > 0, d < 0)
    chosen = np.where(matches, d, 0)
    if combine == "max":
        return np.abs(chosen).max(0) * sign
    total = chosen.sum(0)
    return total / np.maximum((chosen != 0).sum(0), 1) if combine == "mean" else total


def deltas(base, finetuned):
    """From lists of tensors: [T, N] in float64, and the float32 magnitudes that decide what is kept."""
    exact, magnitude = [], []
    for task in finetuned:
        pairs = [(f.double().numpy().ravel(), b.double().numpy().ravel()) for f, b in zip(task, base, strict=True)]
        exact.append(np.concatenate([f - b for f, b in pairs]))
        singles = [f.astype(np.float32) - b.astype(np.float32) for f, b in pairs]
        magnitude.append(np.abs(np.concatenate(singles)))
    return np.array(exact), magnitude
