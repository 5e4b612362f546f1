"""The counterexamples against torch's optimizers and the theorems' numbers; the treatment; the claims at smoke scale."""

from functools import partial

import numpy as np
import pytest
import torch

from assay.data import Dataset
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import mlp
from assay.papers.training.adam_convergence import (
    amsgrad,
    descend,
    divergence_bound,
    long_memory_mends_it_in_random_order,
    short_memory_ends_at_the_worst_point,
    short_memory_hurts_on_digits,
    slopes,
    the_bound_of_theorem_2_is_sufficient,
)
from assay.recipe import Recipe
from assay.train.loop import fit


def by_torch(gradients: np.ndarray, make: object, lr: float, start: float) -> list[float]:
    """The points that torch's optimizer visits, projected on [-1, 1] after every step."""
    x = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = make([x], lr=lr)
    points = []
    for t, g in enumerate(gradients, start=1):
        optimizer.param_groups[0]["lr"] = lr / t**0.5
        x.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        with torch.no_grad():
            x.clamp_(-1, 1)
        points.append(x.item())
    return points


@pytest.mark.parametrize(
    ("variant", "make"),
    [
        ("adam", partial(torch.optim.Adam, betas=(0.9, 0.3))),
        ("adam", partial(torch.optim.Adam, betas=(0.0, 0.99))),
        ("amsgrad", partial(torch.optim.Adam, betas=(0.9, 0.3), amsgrad=True)),
        ("amsgrad", partial(torch.optim.Adam, betas=(0.0, 0.05), amsgrad=True)),
        ("sgd", torch.optim.SGD),
    ],
)
@pytest.mark.parametrize("lr", [0.1, 0.02])
def test_agrees_with_torch_at_every_step(variant: str, make: object, lr: float) -> None:
    gradients = np.random.default_rng(0).normal(size=60) * np.linspace(3, 0.1, 60)
    beta1, beta2 = getattr(make, "keywords", {}).get("betas", (0.0, 0.9))
    expected = by_torch(gradients, make, lr, start=0.3)
    assert len(set(expected)) > 20  # it moves, and not only along the border
    for count in (1, 2, 7, 60):
        end = descend(gradients[:count], variant, beta1, beta2, lr=lr, start=0.3, last=1)
        assert end == pytest.approx(expected[count - 1], abs=1e-10)
    mean = descend(gradients, variant, beta1, beta2, lr=lr, start=0.3, last=10)
    assert mean == pytest.approx(np.mean(expected[-10:]), abs=1e-10)


def test_a_grid_is_many_single_runs() -> None:
    gradients = np.stack([slopes(c, 3, 300) for c in (3.0, 6.0)], axis=1)[..., None]  # (T, 2, 1)
    betas = np.array([0.1, 0.5, 0.999])
    together = descend(gradients, beta2=betas)
    assert together.shape == (2, 3)
    for row, c in enumerate((3.0, 6.0)):
        for column, beta2 in enumerate(betas):
            assert together[row, column] == pytest.approx(float(descend(slopes(c, 3, 300), beta2=beta2)), abs=1e-12)


def test_the_problem_has_its_optimum_at_minus_one() -> None:
    for order in ("cyclic", "shuffled"):
        found = slopes(10.0, 10, 1_000, order, np.random.default_rng(0))
        assert found.reshape(-1, 10).sum(axis=1).tolist() == [1.0] * 100  # C - P + 1 > 0: smaller x is better, every time round
    assert slopes(3.0, 3, 7).tolist() == [3, -1, -1, 3, -1, -1, 3]
    with pytest.raises(ValueError, match="optimum"):
        slopes(2.0, 3, 10)


def test_the_bound_by_hand() -> None:
    assert divergence_bound(6) == pytest.approx(1 / 6)  # 6^-1, against 1 - (9/12)^2 = 0.4375
    assert divergence_bound(10) == pytest.approx(10**-0.5)
    assert divergence_bound(5) == pytest.approx(min(5 ** (-4 / 3), 1 - 0.81))
    with pytest.raises(ValueError, match=">= 5"):
        divergence_bound(4)


def test_adam_walks_to_the_worst_point_and_amsgrad_does_not() -> None:
    gradients = slopes(10.0, 3, 5_000)
    assert descend(gradients, "adam", beta2=0.02) > 0.99
    assert descend(gradients, "amsgrad", beta2=0.02) < -0.99
    assert descend(gradients, "adam", beta2=0.999) < -0.99


def test_treatment_turns_adam_into_amsgrad_and_refuses_others(table: Dataset) -> None:
    plain = Recipe(
        table, model=partial(mlp, 8, 2, (16,)), optimizer=partial(torch.optim.AdamW, lr=0.01, betas=(0.0, 0.1)), epochs=3
    )
    treated = amsgrad(plain)
    assert treated.replace(optimizer=plain.optimizer) == plain
    assert treated.optimizer.keywords == {"lr": 0.01, "betas": (0.0, 0.1), "amsgrad": True}
    assert fit(treated, 0).history != fit(plain, 0).history
    with pytest.raises(AssayError, match="SGD"):
        amsgrad(plain.replace(optimizer=torch.optim.SGD))


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    ends = short_memory_ends_at_the_worst_point(lab)
    assert ends["threshold, C = 10"] < ends["threshold, C = 3"]
    assert set(the_bound_of_theorem_2_is_sufficient(lab)) > {"Adam at the bound, lowest end"}
    assert set(long_memory_mends_it_in_random_order(lab)) > {"gap, beta2 0.99", "gap, beta2 0.999"}
    assert "harm in batches of 512" in short_memory_hurts_on_digits(lab)
