"""Fooling images: the density of mutation, painting at two resolutions, elites that never fall, ascent by hand, the claims."""

from __future__ import annotations

import colorsys

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn

from assay.data import load
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import lenet, mlp
from assay.papers.robust import fooling_images as module
from assay.papers.robust.fooling_images import Cppn, Direct, climb, fool, fooling, map_elites
from assay.papers.robust.fooling_images.encodings import binary_crossover, hsv_to_rgb, polynomial_mutation
from assay.view import View


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_mutation_has_its_density() -> None:
    eta = 15.0
    change = polynomial_mutation(torch.zeros(20_000), -1, 1, 1.0, eta, generator()) / 2  # in units of the range, none is clipped

    def below(x: Tensor) -> Tensor:  # the integral of (eta + 1) / 2 (1 - |x|)^eta
        x = torch.as_tensor(x)
        tail = 0.5 * (1 - x.abs()) ** (eta + 1)
        return torch.where(x < 0, tail, 1 - tail)

    assert kstest(change.numpy(), lambda x: below(x).numpy()).pvalue > 0.01
    assert abs(change.mean().item()) < 0.002
    some = polynomial_mutation(torch.full((20_000,), 0.5), 0, 1, 0.1, eta, generator())
    assert (some != 0.5).double().mean().item() == pytest.approx(0.1, abs=0.01)
    assert 0 <= some.min() < some.max() <= 1


def test_crossover_keeps_the_mean_of_the_parents_and_spreads_around_them() -> None:
    one, other = torch.full((40_000,), 0.4), torch.full((40_000,), 0.6)
    child = binary_crossover(one, other, 10.0, generator())
    crossed = child[child != 0.4]
    assert len(crossed) / 40_000 == pytest.approx(0.5, abs=0.02)
    # (c - mean) / half the distance is minus the spread, whose density is 5.5 s^10 below 1 and 5.5 s^-12 above.
    spread = (0.5 - crossed) / 0.1
    assert (spread < 1).double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert kstest((spread[spread < 1] ** 11).clamp(0, 1).double().numpy(), "uniform").pvalue > 0.01


def test_colours() -> None:
    values = torch.rand(1, 3, 6, 6, generator=generator())
    pixels = zip(*values.flatten(2)[0].tolist(), strict=True)
    wanted = torch.tensor([colorsys.hsv_to_rgb(*pixel) for pixel in pixels]).T.view(1, 3, 6, 6)
    torch.testing.assert_close(hsv_to_rgb(values), wanted, atol=1e-5, rtol=0)


def evolved_genomes(size: int, rounds: int = 40) -> tuple[Tensor, ...]:
    way = Cppn((1, size, size), hidden=6)
    genomes, random = way.random(30, generator()), generator(1)
    for _ in range(rounds):
        genomes = way.vary(genomes, genomes, random)
    return genomes


def test_paintings_do_not_depend_on_the_resolution() -> None:
    genomes = evolved_genomes(15)
    small, large = Cppn((1, 15, 15), hidden=6).express(genomes), Cppn((1, 29, 29), hidden=6).express(genomes)
    torch.testing.assert_close(large[:, :, ::2, ::2], small, atol=1e-4, rtol=1e-4)
    assert small.std(dim=(1, 2, 3)).median() > 0.05  # they are pictures of something


def paint(genome: tuple[Tensor, ...], x: float, y: float) -> float:
    """One pixel of one painting, node by node, by following links backwards."""
    weights, links, kinds, _, _ = genome
    given = [x, y, (x * x + y * y) ** 0.5, 1.0]
    functions = (torch.sin, lambda z: 2 * torch.sigmoid(z) - 1, lambda z: torch.exp(-z * z), lambda z: z.clamp(-3, 3) / 3)

    def value(node: int) -> Tensor:
        if node < 4:
            return torch.tensor(given[node])
        sources = links[node].nonzero().flatten().tolist()
        drive = sum((weights[node, source] * value(source) for source in sources), torch.tensor(0.0))
        return functions[int(kinds[node])](drive)

    return value(4).abs().clamp_max(1).item()


def test_paintings_agree_with_one_pixel_at_a_time() -> None:
    genomes = evolved_genomes(5)
    images = Cppn((1, 5, 5), hidden=6).express(genomes)
    alive, links, depths = genomes[4], genomes[1], genomes[3]
    assert alive.sum(dim=1).max() == 11  # all places were taken at some time
    assert alive.sum(dim=1).min() < 11
    assert not (links & ~(depths[:, :, None] > depths[:, None, :])).any()  # no circles
    assert not links[~alive].any()
    assert not links.transpose(1, 2)[~alive].any()
    for place in range(0, 30, 3):
        one = tuple(part[place] for part in genomes)
        for row, y in enumerate((-1.0, -0.5, 0.0)):
            assert images[place, 0, row, 3].item() == pytest.approx(paint(one, 0.5, y), abs=2e-3)


def test_every_child_is_offered_to_every_cell_and_elites_never_fall() -> None:
    aims = torch.rand(6, 8, generator=generator(3))
    seen: list[Tensor] = []

    def evaluate(images: Tensor) -> Tensor:
        found = -torch.cdist(images, aims)
        seen.append(found)
        return found

    (genes,), history = map_elites(evaluate, Direct((8,)), 30, 20, generator())
    assert history.shape == (31, 6)
    torch.testing.assert_close(history, torch.stack([found.amax(0) for found in seen]).cummax(dim=0).values)
    torch.testing.assert_close(evaluate(genes).diagonal(), history[-1])
    assert (history[-1] > history[0] + 0.1).all()


@pytest.mark.parametrize("encoding", ["direct", "cppn", "gradient"])
def test_stored_images_reproduce_their_confidence(encoding: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(lenet(1, 5, 12), nn.Linear(5, 5, bias=False))
    model[1].weight.data = 20 * torch.eye(5)
    found = fool(model, (1, 12, 12), 5, encoding, 30, 40, low=-1.0, high=2.0)  # type: ignore[arg-type]
    with torch.no_grad():
        again = model(found.images).double().softmax(1).diagonal()
    torch.testing.assert_close(again, found.confidence, atol=1e-5, rtol=1e-4)
    steps = (found.images + 1) / 3 * 255
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    assert (found.history[1:] >= found.history[:-1]).all()
    assert found.history[-1].median() > found.history[0].median() + 0.05
    if encoding != "gradient":  # there the images are rounded at the end
        torch.testing.assert_close(found.confidence, found.history[-1], atol=1e-5, rtol=1e-4)


def test_ascent_takes_the_steps_of_the_rule() -> None:
    torch.manual_seed(0)
    model = mlp(4, 3, (8,))
    x = torch.full((1, 4), 0.5)
    _, history = climb(model, x, torch.tensor([2]), steps=3, decay=0.05, centre=0.5, low=0.0, high=1.0)
    wanted = []
    for _ in range(4):
        x = x.clamp(0, 1).requires_grad_()
        p = model(x).softmax(1)[0, 2]
        (g,) = torch.autograd.grad(p, x)
        rate = min(0.03, 0.1 * (1 - p.item())) / g.square().sum().item()
        wanted.append(p.item())
        x = 0.5 + 0.95 * (x.detach() + rate * g - 0.5)
    torch.testing.assert_close(history[:, 0], torch.tensor(wanted).cummax(0).values)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ValueError, match="paints images"):
        Cppn((6,))
    with pytest.raises(ValueError, match="encoding must be"):
        fool(mlp(4, 3), (4,), 3, "none")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["images", "table"])
def test_probe_on_peoples_data(kind: str) -> None:
    torch.manual_seed(0)
    shape = (3, 8, 8) if kind == "images" else (6,)
    inputs, background = torch.randn(4, *shape), torch.randn(20, *shape)
    model = mlp(192 if kind == "images" else 6, 3).eval()
    view = View(model, inputs, model(inputs).argmax(1), None, background, None, kind, ("a", "b", "c"))
    seen = fooling(view, generations=5, population=10)
    (images,) = seen.inputs.values()
    assert images.shape == inputs.shape
    whole = torch.cat([inputs, background])
    assert whole.min() <= images.min() < images.max() <= whole.max()
    assert 0 < seen.numbers["lowest confidence"] <= seen.numbers["median confidence"] <= 1
    if kind == "table":
        with pytest.raises(AssayError, match="images"):
            fooling(view, encoding="cppn")


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    for one in (module.noise_fools_with_certainty, module.neighbours_see_no_digit, module.retraining_does_not_help):
        measured = one(lab)
        assert {name for want in one.expect for name in (want.arm, getattr(want, "than", want.arm))} <= set(measured)


def test_claim_on_clothes_at_smoke_scale(home: object) -> None:
    try:
        load("fashion-mnist")
    except AssayError as error:
        pytest.skip(str(error))
    measured = module.patterns_transfer(Lab(scale="smoke"))
    assert all(0 <= value <= 1 for value in measured.values())
