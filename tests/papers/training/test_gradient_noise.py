"""Gradient noise: its variance against equation 1, what it leaves alone, resuming, and its claims at smoke scale."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from assay.data import Dataset
from assay.lab import Lab
from assay.nn import mlp
from assay.papers.training.gradient_noise import (
    GradientNoise,
    NoisyGradients,
    add_gradient_noise_,
    annealing_matters,
    deep_mlp,
    gradient_noise,
    harmless_with_a_good_start,
    helps_a_poor_start,
    more_than_noise_at_the_start,
    noise_std,
    rescues_zero_weights,
)
from assay.recipe import Recipe
from assay.train.hooks import Run
from assay.train.loop import fit


def steps(count: int, weights: torch.Tensor, rate: float = 1.0, gradient: float = 0.0, **settings: float) -> list[torch.Tensor]:
    """What each of ``count`` steps of plain SGD added to the weights, whose gradient is a constant."""
    parameter = nn.Parameter(weights.clone())
    optimizer = torch.optim.SGD([parameter], lr=rate)
    GradientNoise(optimizer, **settings)
    moves = []
    for _ in range(count):
        before = parameter.detach().clone()
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
        moves.append(parameter.detach() - before)
    return moves


def test_variance_falls_as_equation_1_says() -> None:
    """A million weights: the empirical variance is within 1 % of eta / (1 + t)^gamma, about a mean of the true gradient."""
    moves = steps(101, torch.zeros(1_000_000), gradient=0.25, eta=0.3, gamma=0.55)
    for t in (0, 10, 100):
        assert moves[t].var().item() == pytest.approx(0.3 / (1 + t) ** 0.55, rel=0.01)
        assert moves[t].mean().item() == pytest.approx(-0.25, abs=3e-3)
    together = torch.stack(moves[:2])
    assert abs(torch.corrcoef(together)[0, 1].item()) < 5e-3  # the noise of two steps has nothing in common


def test_the_schedule_by_hand() -> None:
    assert noise_std(0, eta=0.01) == pytest.approx(0.1)
    assert noise_std(1023, eta=1.0, gamma=0.4) == pytest.approx(0.25)  # (1 / 1024^0.4)^(1/2) = 2^-2
    assert noise_std(10**9, eta=0.3, gamma=0.0) == pytest.approx(0.3**0.5)


def test_without_eta_every_bit_stays() -> None:
    weights = torch.randn(50, generator=torch.Generator().manual_seed(0))
    moves = steps(3, weights, rate=0.1, gradient=0.5, eta=0.0)
    plain = nn.Parameter(weights.clone())
    optimizer = torch.optim.SGD([plain], lr=0.1)
    for _ in range(3):
        plain.grad = torch.full_like(plain, 0.5)
        optimizer.step()
    total = weights.clone()
    for move in moves:
        total = total + move
    assert torch.allclose(total, plain.detach())


def test_a_parameter_without_gradient_stays_and_the_seed_decides() -> None:
    used, idle = nn.Parameter(torch.zeros(1000)), nn.Parameter(torch.zeros(5))
    used.grad = torch.zeros(1000)
    add_gradient_noise_([used, idle], 0.5, torch.Generator().manual_seed(3))
    assert idle.grad is None
    assert used.grad.std().item() == pytest.approx(0.5, rel=0.1)
    first, same, other = (steps(2, torch.zeros(9), seed=seed)[1] for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_goes_on_from_a_saved_state_and_can_be_removed() -> None:
    whole = steps(4, torch.zeros(9), eta=0.3, seed=5)
    parameter = nn.Parameter(torch.zeros(9))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    noise = GradientNoise(optimizer, eta=0.3)
    noise.load_state_dict({"seed": 5, "step": 3})
    parameter.grad = torch.zeros(9)
    optimizer.step()
    assert torch.allclose(parameter.detach(), whole[3], atol=1e-6)
    assert noise.state_dict() == {"seed": 5, "step": 4}
    noise.remove()
    before = parameter.detach().clone()
    parameter.grad = torch.zeros(9)
    optimizer.step()
    assert torch.equal(parameter.detach(), before)


def test_the_hook_follows_the_schedule_and_its_noise_is_its_own(table: Dataset) -> None:
    """On a fake run: the spread at steps 0 and 100, and nothing in common between steps, seeds and an initialisation."""
    drawn: dict[tuple[int, int], torch.Tensor] = {}
    for seed in (1, 2):
        for step in (0, 100):
            model = nn.Linear(400, 250, bias=False)
            model.weight.grad = torch.zeros_like(model.weight)
            generator = torch.Generator().manual_seed(seed)
            run = Run(
                model, torch.optim.SGD(model.parameters(), lr=1.0), table, torch.device("cpu"), generator, 10, 20, step=step
            )
            NoisyGradients(0.3).after_backward(run)
            drawn[seed, step] = model.weight.grad.flatten()
            assert drawn[seed, step].std().item() == pytest.approx(noise_std(step, 0.3), rel=0.02)
            assert torch.equal(generator.get_state(), torch.Generator().manual_seed(seed).get_state())  # nobody else's stream
    start = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    together = torch.corrcoef(torch.stack([*drawn.values(), start])).fill_diagonal_(0)
    assert together.abs().max() < 0.02


def test_what_noise_cannot_be_put_on_is_refused() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    GradientNoise(optimizer)
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(lambda: 0.0)
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse"):
        add_gradient_noise_(table.parameters(), 0.1)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        NoisyGradients(eta=-0.1)
    with pytest.raises(ValueError, match="negative"):
        GradientNoise(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), gamma=-1)


def _plain(table: Dataset) -> Recipe:
    return Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=4, batch_size=32, clip_norm=0.01)


def test_the_noise_comes_after_clipping(table: Dataset) -> None:
    """Clipped to a norm of 0.01 the network hardly moves; noise of norm about 14 must not be clipped away."""
    start = torch.cat([p.flatten() for p in fit(_plain(table).replace(epochs=1), 0).model.parameters()])
    moved = torch.cat([p.flatten() for p in fit(gradient_noise(_plain(table).replace(epochs=1), eta=1.0), 0).model.parameters()])
    assert (moved - start).norm() > 1


def test_treatment_composes_and_repeats_bit_for_bit(table: Dataset) -> None:
    plain = _plain(table)
    recipe = gradient_noise(plain, eta=0.3)
    assert recipe.replace(hooks=()) == plain
    assert recipe.hooks == (NoisyGradients(0.3, 0.55),)
    assert fit(recipe, 0).history == fit(recipe, 0).history
    assert fit(recipe, 0).history != fit(recipe, 1).history


def test_an_interrupted_training_goes_on_bit_for_bit(table: Dataset, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: float, total: float, note: str) -> None:
        if done >= total / 2:
            raise Stop

    recipe = gradient_noise(_plain(table), eta=0.3)
    checkpoint = tmp_path / "half"
    with pytest.raises(Stop):
        fit(recipe, 0, checkpoint=checkpoint, checkpoint_seconds=0, report=stop)
    assert checkpoint.exists()
    resumed, whole = fit(recipe, 0, checkpoint=checkpoint), fit(recipe, 0)
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True))


def test_from_zero_weights_only_the_last_bias_learns_without_noise() -> None:
    net = deep_mlp(16, 4)
    net(torch.rand(3, 16)).logsumexp(1).sum().backward()
    moved = [name for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert moved == ["9.bias"]


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert set(rescues_zero_weights(lab)) == {"no noise", "gradient noise", "He initialisation, no noise"}
    assert set(more_than_noise_at_the_start(lab)) > {"noise in the initial weights", "gradient noise"}
    assert set(helps_a_poor_start(lab)) > {"no noise", "gradient noise"}
    assert set(harmless_with_a_good_start(lab)) > {"no noise", "gradient noise, eta 0.01", "gradient noise, eta 1"}
    assert set(annealing_matters(lab)) == {"constant noise", "constant noise, same start", "annealed noise"}
