"""How alike two layers see the same examples, whatever their widths: linear centred kernel alignment (CKA).

    HSIC(X, Y) = |Yc^T Xc|^2 = sum of Kc * Lc,   Kc = Xc Xc^T, Lc = Yc Yc^T      (Xc: columns centred)
    CKA(X, Y) = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y))

CKA is 1 for representations that differ by a rotation and a scale, and does not change under these; it does change under
other linear maps. With few examples and many features everything looks alike: independent Gaussian features of a width far
above the number of examples have a CKA near 1. The unbiased estimate takes that away; it may be negative.

Sources: Kornblith, Norouzi, Lee and Hinton, "Similarity of Neural Network Representations Revisited", ICML 2019; the unbiased
estimate of HSIC: Song, Smola, Gretton, Bedo and Borgwardt, "Feature Selection via Dependence Maximization", JMLR 2012.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 1e-12  # of a squared norm that is 1 over the number of directions at least, unless there is nothing in it


def linear_cka(x: Tensor, y: Tensor, unbiased: bool = False) -> Tensor:
    """Linear CKA of two representations of the same examples; differentiable in both.

    It is computed in float32 at least, also under autocast: sums of B^2 products overflow in half precision. Where both
    are narrower than the batch, features are multiplied (B d^2 operations), else Gram matrices (B^2 d).

    Args:
        x: (B, ...), flattened to (B, d).
        y: (B, ...), flattened to (B, e).
        unbiased: take the unbiased estimates of HSIC; needs four examples.

    Returns:
        A scalar: in [0, 1], or at most about 1 if unbiased. 0 where one of them is the same for all examples.

    Raises:
        ValueError: different numbers of examples, or too few.
    """
    least = 4 if unbiased else 2
    if len(x) != len(y) or len(x) < least:
        raise ValueError(f"CKA needs the same examples in both, {least} or more, and got {len(x)} and {len(y)}")
    with torch.autocast(x.device.type, enabled=False):
        x, y = _centred(x), _centred(y)
        narrow = max(x.shape[1], y.shape[1]) < len(x)
        # Kernels or features: what stands for a representation, so that HSIC is a product of two of these.
        k, m = (x, y) if narrow else (x @ x.T, y @ y.T)

        def hsic(a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor) -> Tensor:
            inner: Tensor = (a.T @ b).square().sum() if narrow else (a * b).sum()
            return _without_bias(inner, of_a.square().sum(dim=1), of_b.square().sum(dim=1)) if unbiased else inner

        own = hsic(k, k, x, x).clamp_min(_LEAST) * hsic(m, m, y, y).clamp_min(_LEAST)
        alike: Tensor = hsic(k, m, x, y) / own.sqrt()
    return alike


def _centred(x: Tensor) -> Tensor:
    """(B, d): columns of mean zero and a squared length of one in all, which CKA does not see and float32 does."""
    x = x.flatten(1).to(torch.promote_types(x.dtype, torch.float32))
    x = x - x.mean(dim=0)
    size: Tensor = torch.linalg.vector_norm(x.detach())
    return x / size.clamp_min(torch.finfo(x.dtype).tiny)


def _without_bias(inner: Tensor, of_x: Tensor, of_y: Tensor) -> Tensor:
    """The unbiased HSIC (Song et al., eq. 5) times B (B - 3), of centred kernels by their product and diagonals (B,).

    With rows that sum to zero, the sum of a kernel off its diagonal is minus the sum of the diagonal.
    """
    n = len(of_x)
    diagonal = (of_x * of_y).sum()
    return inner - diagonal + of_x.sum() * of_y.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * diagonal
