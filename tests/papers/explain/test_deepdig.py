"""DeepDIG: closed forms on linear classifiers, bisection pair by pair, foreseeable boundaries, and DeepFool's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import mlp
from assay.papers.explain import deepdig as module
from assay.papers.explain.deepdig import (
    bisect_boundary,
    boundary,
    deepdig,
    hyperplane,
    label_changes,
    nearest_pairs,
    random_pairs,
)
from assay.papers.robust.deepfool import deepfool
from assay.view import View


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor]:
    """A small network that tells three noisy patterns in [0, 1] apart, and examples."""
    torch.manual_seed(0)
    labels = torch.arange(360) % 3
    inputs = (0.5 + 0.5 * (torch.rand(3, 16)[labels] - 0.5) + 0.15 * torch.randn(360, 16)).clamp(0, 1)
    model = mlp(16, 3, (32,))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    assert (model(inputs).argmax(dim=1) == labels).double().mean() > 0.9
    return model.eval(), inputs


def said(model: nn.Module, inputs: Tensor, label: int) -> Tensor:
    return inputs[model(inputs).argmax(dim=1) == label]


def two_classes(scale: float = 1.0, dtype: torch.dtype = torch.float64) -> nn.Linear:
    torch.manual_seed(1)
    model = nn.Linear(6, 2).to(dtype).requires_grad_(False)
    model.weight *= scale
    model.bias *= scale
    return model


def crossing(model: nn.Linear, a: Tensor, b: Tensor) -> Tensor:
    """Where both logits of a linear classifier are equal on each segment."""
    gap_a, gap_b = ((model(ends)[:, 0] - model(ends)[:, 1]) for ends in (a, b))
    return a + (gap_a / (gap_a - gap_b)).unsqueeze(1) * (b - a)


def test_linear_classifier_is_crossed_where_the_formula_says():
    model = two_classes()
    inputs = torch.randn(200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    a, b = random_pairs(said(model, inputs, 0), said(model, inputs, 1), torch.Generator().manual_seed(0))
    found = bisect_boundary(model, a, b, 0, 1, beta=1e-10)
    assert found.success.all()
    assert found.success_rate == 1
    torch.testing.assert_close(found.samples, crossing(model, a, b), rtol=0, atol=1e-8)
    # |p_s - p_t| <= half the difference of logits: halvings of the segment until this is below beta, and one more.
    length = (model(a) - model(b)).diff(dim=1).abs().squeeze(1)
    assert (found.steps <= torch.log2(length / 2 / 1e-10).ceil() + 1).all()
    assert (found.steps > 5).any()


def test_float64_takes_over_where_float32_has_no_number_left():
    model = two_classes(scale=3e4, dtype=torch.float32)
    inputs = torch.randn(200, 6, generator=torch.Generator().manual_seed(2))
    a, b = random_pairs(said(model, inputs, 0), said(model, inputs, 1), torch.Generator().manual_seed(0))
    found = bisect_boundary(model, a, b, 0, 1)
    assert found.success.all()
    assert found.double.any()
    assert found.samples.dtype == torch.float64
    exact = two_classes(scale=3e4, dtype=torch.float32).double()
    probs = exact(found.samples[found.double]).softmax(dim=1)
    assert ((probs[:, 0] - probs[:, 1]).abs() < 1e-4).all()
    assert next(model.parameters()).dtype == torch.float32


def one_by_one(model: nn.Module, a: Tensor, b: Tensor, s: int, t: int) -> tuple[Tensor, bool, int]:
    for step in range(1, 61):
        middle = (a + b) / 2
        probs = model(middle[None])[0].softmax(dim=0)
        top = int(probs.argmax())
        if top not in (s, t):
            return middle, False, step
        if abs(probs[s] - probs[t]) < 1e-4:
            return middle, True, step
        a, b = (middle, b) if top == s else (a, middle)
    return middle, False, 60


def test_all_pairs_at_once_are_as_one_pair_at_a_time(trained):
    model, inputs = trained
    model, inputs = mlp(16, 3, (32,)).double().eval().requires_grad_(False), inputs.double()
    model.load_state_dict(trained[0].state_dict())
    a, b = random_pairs(said(model, inputs, 0), said(model, inputs, 2), torch.Generator().manual_seed(0))
    found = bisect_boundary(model, a, b, 0, 2)
    for row in range(len(a)):
        sample, success, steps = one_by_one(model, a[row], b[row], 0, 2)
        assert (bool(found.success[row]), int(found.steps[row])) == (success, steps)
        torch.testing.assert_close(found.samples[row], sample, rtol=0, atol=1e-10)
    assert torch.equal(found.success | found.third, torch.ones(len(a), dtype=torch.bool))


def test_a_third_class_in_between_is_a_failure():
    class Line(nn.Module):  # classes 0, 2, 1 from left to right
        def forward(self, x: Tensor) -> Tensor:
            return -((x - torch.tensor([0.0, 1.0, 0.5]).to(x)) ** 2) * 20

    found = bisect_boundary(Line(), torch.zeros(3, 1), torch.ones(3, 1), 0, 1)
    assert found.third.all()
    assert found.success_rate == 0
    assert found.steps.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="one end"):
        bisect_boundary(Line(), torch.ones(3, 1), torch.zeros(3, 1), 0, 1)


def test_bisection_ends_at_deepfools_boundary():
    """On two linear classes the nearest boundary is a formula, DeepFool finds it, and so does the segment that it crosses."""
    model = two_classes()
    start = said(model, torch.randn(50, 6, dtype=torch.float64), 0)
    pushed = deepfool(model, start).adversarial
    found = bisect_boundary(model, start, pushed, 0, 1, beta=1e-8)
    distance = (model(start)[:, 0] - model(start)[:, 1]) / (model.weight[0] - model.weight[1]).norm()
    torch.testing.assert_close((found.samples - start).norm(dim=1), distance, rtol=0, atol=1e-6)


def test_boundary_points_are_on_the_boundary(trained):
    model, inputs = trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = deepdig(model, said(model, inputs, 0), 0, 1, steps=250, batch_size=32)
    assert len(found.origin) > 20
    assert found.bisected.success_rate > 0.9
    probs = model(found.bisected.boundary.float()).softmax(dim=1)
    assert ((probs[:, 0] - probs[:, 1]).abs() < 2e-4).all()
    assert (probs.topk(2, dim=1).indices.sort(dim=1).values == torch.tensor([0, 1])).all()
    assert (model(found.adversarial).argmax(dim=1) == 1).all()
    assert (model(found.back).argmax(dim=1) == 0).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = deepdig(model, said(model, inputs, 0), 0, 1, steps=250, batch_size=32)
    assert torch.equal(found.bisected.samples, again.bisected.samples)
    # The pair was made to lie close together, and near the example that it is of: closer than examples of both classes do.
    apart = [
        torch.linalg.vector_norm(one - other, dim=1).mean()
        for one, other in (
            (found.adversarial, found.back),
            (found.adversarial, said(model, inputs, 0)[found.origin]),
            random_pairs(said(model, inputs, 0), said(model, inputs, 1), torch.Generator().manual_seed(0)),
        )
    ]
    assert apart[0] < apart[1] < apart[2]


def test_range_of_inputs(trained):
    """Inputs of any range: moving and stretching inputs and network alike moves and stretches what is found."""
    model, inputs = trained
    source = said(model, inputs, 0)

    class Stretched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model((x + 2) / 4)

    plain = deepdig(model, source, 0, 1, steps=100, batch_size=32)
    wide = deepdig(Stretched(), 4 * source - 2, 0, 1, low=-2.0, high=2.0, steps=100, batch_size=32)
    both = set(plain.origin.tolist()) & set(wide.origin.tolist())
    assert len(plain.origin) > 20
    assert abs(len(plain.origin) - len(wide.origin)) <= 3
    assert len(both) >= len(plain.origin) - 3
    with pytest.raises(ValueError, match="give low and high"):
        deepdig(Stretched(), 4 * source - 2, 0, 1, steps=1)
    with pytest.raises(ValueError, match="two classes"):
        deepdig(model, source, 1, 1)


def test_what_the_network_says_is_pulled_by_binary_cross_entropy():
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = F.binary_cross_entropy(logits.softmax(dim=1), F.one_hot(torch.full((5,), 2), 4).double())
    torch.testing.assert_close(module._says(logits, 2), expected)
    sure = torch.tensor([[200.0, 0.0]], requires_grad=True)
    module._says(sure, 1).backward()
    assert sure.grad is not None
    assert sure.grad[0, 0] == pytest.approx(0.5)


def test_changes_of_the_label_along_lines():
    class Stripes(nn.Module):  # a new label at every whole number
        def forward(self, x: Tensor) -> Tensor:
            return F.one_hot(x[:, 0].floor().long() % 2, 2).double()

    samples = torch.tensor([[0.5], [4.5]])  # between both: four changes, whichever end comes first
    assert label_changes(Stripes(), samples, points=50, partners=3) == pytest.approx(4 / 50)
    assert label_changes(Stripes(), torch.full((3, 1), 0.5), partners=2) == 0
    with pytest.raises(ValueError, match="two samples"):
        label_changes(Stripes(), samples[:1])


def test_hyperplane_and_its_distance():
    first, second = torch.tensor([[-2.0, 0.0], [-2.0, 1.0]]), torch.tensor([[2.0, 0.0], [2.0, 1.0]])
    plane = hyperplane(first, second)
    torch.testing.assert_close(plane.distance(torch.tensor([[0.0, 0.5], [3.0, 0.5]])), torch.tensor([0.0, 3.0]).double(),
                               rtol=0, atol=0.05)  # fmt: skip
    assert plane.closeness(torch.tensor([[3.0, 0.5]])) == pytest.approx(0.75, abs=0.01)


def test_nearest_pairs():
    first, second = torch.tensor([[0.0], [9.0]]), torch.tensor([[8.0], [1.0], [20.0]])
    assert nearest_pairs(first, second, first, second)[1].tolist() == [[1.0], [8.0]]


def view(trained, **changes) -> View:
    model, inputs = trained
    given = {"model": model, "inputs": inputs[:12], "target": model(inputs[:12]).argmax(dim=1), "labels": None}
    given |= {"background": inputs[12:], "background_labels": None, "kind": "table", "classes": ("a", "b", "c")}
    return View(**(given | changes))


def test_probe_shows_the_nearest_point_of_the_boundary(trained):
    model = trained[0]
    seen = boundary(view(trained), first="a", second="b", steps=150)
    (shown,) = seen.inputs.values()
    probs = model(shown.float()).softmax(dim=1)
    assert ((probs[:, 0] - probs[:, 1]).abs() < 1e-2).all()
    near = seen.each["distance to the nearest of them"]
    torch.testing.assert_close(near, (shown - trained[1][:12]).norm(dim=1), rtol=1e-3, atol=1e-3)
    assert seen.numbers["closeness to the hyperplane, boundary"] < seen.numbers["closeness to the hyperplane, examples"]
    assert all(math.isfinite(value) for value in seen.numbers.values())
    with pytest.raises(AssayError, match="no class 'z'"):
        boundary(view(trained), first="a", second="z")
    with pytest.raises(AssayError, match="two different classes"):
        boundary(view(trained), first="a")


def test_probe_chooses_two_classes_itself(trained):
    logits = trained[0](trained[1])
    s, t = module._classes(view(trained), logits, "", "")
    assert s != t
    assert {s, t} <= {0, 1, 2}


@pytest.mark.parametrize(
    "claim",
    [
        module.more_successes_than_pairs,
        module.fewer_halvings,
        module.boundary_lies_at_the_hyperplane,
        module.fully_connected_changes_more,
    ],
)
def test_claims_run(claim, tmp_path_factory, monkeypatch):
    lab = Lab(scale="smoke")
    try:
        for name in claim.needs:
            lab.data(name)
    except AssayError as error:
        pytest.skip(str(error))
    shared = tmp_path_factory.getbasetemp() / "deepdig"  # the claims share their networks
    shared.mkdir(exist_ok=True)
    monkeypatch.setattr("assay.lab.memory.trained_dir", lambda: shared)
    arms = claim(lab)
    assert {name for one in claim.expect for name in (one.arm, one.than)} <= set(arms)
