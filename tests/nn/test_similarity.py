"""CKA against its definition with explicit kernels, its invariances, and the unbiased estimate against a sum over tuples."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from assay.nn.similarity import linear_cka


def pair(examples: int = 40, first: int = 6, second: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, first, generator=generator, dtype=torch.float64)
    return x, x @ torch.randn(first, second, generator=generator, dtype=torch.float64) + torch.randn(
        examples, second, generator=generator, dtype=torch.float64
    )


def by_kernels(x: np.ndarray, y: np.ndarray) -> float:
    """The definition: centred kernels by the matrix H, HSIC as their inner product."""
    h = np.eye(len(x)) - 1 / len(x)
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def hsic_over_tuples(x: Tensor, y: Tensor) -> float:
    """The unbiased HSIC as the mean over all ordered quadruples of different examples (Song et al., eq. 4)."""
    k, m = (x @ x.T).numpy(), (y @ y.T).numpy()
    terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in permutations(range(len(x)), 4)]
    return float(np.mean(terms))


@pytest.mark.parametrize(("first", "second"), [(6, 9), (60, 9), (6, 70), (60, 70)])
def test_both_forms_are_the_definition(first: int, second: int) -> None:
    x, y = pair(40, first, second)
    assert linear_cka(x + 5, y - 3).item() == pytest.approx(by_kernels(x.numpy(), y.numpy()), abs=1e-10)


@pytest.mark.parametrize("width", [3, 20])
def test_the_unbiased_estimate_is_the_mean_over_quadruples(width: int) -> None:
    x, y = pair(7, width, width)
    expected = hsic_over_tuples(x, y) / np.sqrt(hsic_over_tuples(x, x) * hsic_over_tuples(y, y))
    assert linear_cka(x, y, unbiased=True).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("width", [6, 50])
def test_invariances(width: int, unbiased: bool) -> None:
    x, y = pair(40, width, 8)
    turn, _ = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    value = linear_cka(x, y, unbiased)
    torch.testing.assert_close(linear_cka(x, x, unbiased).item(), 1.0)
    torch.testing.assert_close(linear_cka(1e4 * x @ turn + 2, y, unbiased), value)
    torch.testing.assert_close(linear_cka(y, x, unbiased), value)
    stretched = x * torch.linspace(0.1, 5, width, dtype=torch.float64)
    assert abs(linear_cka(stretched, y, unbiased) - value) > 0.01


def test_independent_features_look_alike_where_they_are_many() -> None:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for width in (10, 100, 5000):
        x, y = torch.randn(2, 256, width, generator=generator).unbind()
        found[width] = (linear_cka(x, y).item(), linear_cka(x, y, unbiased=True).item())
    assert found[10][0] < 0.1 < found[100][0] < 0.5 < 0.9 < found[5000][0]
    assert all(abs(unbiased) < 0.06 for _, unbiased in found.values())


def test_gradients_values_and_precision() -> None:
    x, y = pair(9, 4, 12)
    x.requires_grad_(), y.requires_grad_()
    assert torch.autograd.gradcheck(linear_cka, (x, y))
    assert torch.autograd.gradcheck(lambda a, b: linear_cka(a, b, True), (x[:, :3], y[:, :3]))
    low = (x.detach() * 300).half()
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cka(low, y.detach().half())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(linear_cka(x, y).item(), abs=1e-3)
    images = x.detach().reshape(9, 2, 2, 1)
    torch.testing.assert_close(linear_cka(images, y), linear_cka(x, y))


def test_a_layer_that_has_died_is_like_nothing_and_gives_no_gradient() -> None:
    x = torch.zeros(10, 4, requires_grad=True)
    for unbiased in (False, True):
        value = linear_cka(x, torch.randn(10, 3), unbiased)
        (gradient,) = torch.autograd.grad(value, x)
        assert value.item() == 0
        assert gradient.isfinite().all()
    with pytest.raises(ValueError, match="same examples"):
        linear_cka(torch.ones(4, 2), torch.ones(5, 2))
    with pytest.raises(ValueError, match="4 or more"):
        linear_cka(torch.ones(3, 2), torch.ones(3, 2), unbiased=True)
