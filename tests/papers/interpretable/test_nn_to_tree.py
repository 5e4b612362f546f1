"""Trees of networks: the network's own outputs, arrangements of hyperplanes, breakpoints on a line, Jacobians."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from math import comb

import numpy as np
import pytest
import torch
from torch import nn

from assay.errors import AssayError
from assay.lab import Lab
from assay.lab.verdict import judge
from assay.nn import mlp
from assay.papers.interpretable import nn_to_tree as paper
from assay.papers.interpretable.nn_to_tree import linear_pieces, to_tree
from assay.view import View

SVG = "{http://www.w3.org/2000/svg}"


def net(inputs: int, *widths: int, activation: type[nn.Module] = nn.ReLU, outputs: int = 2, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), activation()]
        nn.init.normal_(layers[-2].bias)
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs)).double()


def said(model: nn.Module, inputs: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(inputs)).detach().numpy()


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.ReLU6, nn.Hardsigmoid])
@pytest.mark.parametrize(("inputs", "widths"), [(1, (5, 4)), (2, (4, 3, 3)), (4, (3, 3)), (3, ())])
def test_the_tree_says_what_the_network_says(inputs, widths, activation):
    model = net(inputs, *widths, activation=activation)
    tree = to_tree(model, (inputs,))
    random = np.random.default_rng(0)
    for scale in (0.3, 3, 30):
        rows = random.normal(size=(2000, inputs)) * scale
        np.testing.assert_allclose(tree.predict(rows), said(model, rows), atol=1e-12 * scale)
    for offset in (0.0, 1e-15, 1e-12, 1e-9):  # on the tests themselves, and as near to them as can be
        edges = paper.at_the_edges(tree, random.normal(size=(100, inputs)), offset, random)
        np.testing.assert_allclose(tree.predict(edges), said(model, edges), atol=1e-12)


@pytest.mark.parametrize(("inputs", "width"), [(1, 7), (2, 6), (3, 5), (4, 4)])
def test_one_layer_cuts_space_into_as_many_regions_as_hyperplanes_in_general_position(inputs, width):
    assert to_tree(net(inputs, width), (inputs,)).n_leaves == sum(comb(width, k) for k in range(inputs + 1))


def test_branches_that_were_left_out_are_counted():
    """On a line each new breakpoint cuts one of the pieces that there are in two, and the others go on to one side."""
    tree = to_tree(net(1, 7, activation=nn.LeakyReLU), (1,))
    assert (tree.n_leaves, tree.left_out) == (8, 7 * 6 // 2)
    assert to_tree(net(1, 7), (1,), prune=False).left_out == 0


def test_on_a_line_there_is_a_leaf_between_any_two_breakpoints():
    model = net(1, 6, 5, outputs=1, activation=nn.LeakyReLU)
    tree = to_tree(model, (1,), low=-3, high=3)
    # breakpoints seen without the tree: where the slope of the network changes on a fine grid
    grid = torch.linspace(-3, 3, 200_001, dtype=torch.float64).unsqueeze(1).requires_grad_()
    (slope,) = torch.autograd.grad(model(grid).sum(), grid)
    steps = int(((slope[1:] - slope[:-1]).abs() > 1e-9).sum())
    assert tree.n_leaves == steps + 1


def test_every_leaf_is_reached_and_has_the_networks_jacobian():
    model = net(2, 5, 4)
    tree = to_tree(model, (2,), low=-2, high=2)
    rows = np.random.default_rng(0).uniform(-2, 2, (40_000, 2))
    leaves = tree.apply(rows)
    assert len(set(leaves.tolist())) >= 0.9 * tree.n_leaves  # the smallest regions may be missed
    for row, leaf in zip(rows[:30], leaves[:30], strict=True):
        jacobian = torch.autograd.functional.jacobian(model, torch.from_numpy(row))
        np.testing.assert_allclose(tree.maps[leaf], jacobian.numpy(), atol=1e-12)


def test_without_pruning_there_are_two_to_the_number_of_units():
    model = net(2, 3, 3)
    whole, clean = to_tree(model, (2,), prune=False), to_tree(model, (2,))
    assert clean.n_leaves < whole.n_leaves <= 64  # fewer than 64 where siblings have equal functions and are one leaf
    leaky = to_tree(net(2, 3, 3, activation=nn.LeakyReLU), (2,), prune=False)
    assert leaky.n_leaves == 64  # no two pieces of a leaky ReLU have the same slope
    rows = np.random.default_rng(0).normal(size=(500, 2))
    np.testing.assert_allclose(whole.predict(rows), clean.predict(rows), atol=1e-12)
    assert (clean.tests(rows) <= whole.tests(rows)).all()
    assert (leaky.tests(rows) == 6).all()


def test_units_that_nobody_listens_to_are_not_asked():
    model = net(2, 3)
    with torch.no_grad():
        model[2].weight[:, 1] = 0
    assert to_tree(model, (2,)).weights.shape[0] < to_tree(net(2, 3), (2,)).weights.shape[0]
    with torch.no_grad():
        model[2].weight.zero_()
    assert to_tree(model, (2,)).n_leaves == 1


def test_networks_whose_hyperplanes_all_meet_have_no_leaves_without_room():
    model = nn.Sequential(nn.Linear(1, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False)).double()
    assert to_tree(model, (1,)).n_leaves == 2
    plane = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False)).double()
    assert to_tree(plane, (2,), low=-1, high=1).n_leaves == 8  # four lines through the origin


def test_bounds_leave_out_what_lies_outside():
    model = net(1, 1)
    knot = float(-model[0].bias.item() / model[0].weight.item())
    assert to_tree(model, (1,), low=knot + 0.1).n_leaves == 1
    assert to_tree(model, (1,), low=knot - 0.1, high=knot + 0.1).n_leaves == 2


def test_visited_paths_are_exact_on_their_examples():
    torch.manual_seed(0)
    model = mlp(64, 10, (16, 16)).double()
    rows = np.random.default_rng(0).normal(size=(200, 8, 8))
    tree = to_tree(model, (8, 8), visited_by=rows)
    np.testing.assert_allclose(tree.predict(rows), said(model, rows), atol=1e-12)
    assert 100 < tree.n_leaves <= 200
    assert set(tree.apply(rows).tolist()) == set(range(tree.n_leaves))


def test_explanation_follows_the_way_to_the_leaf():
    model = net(2, 4)
    tree = to_tree(model, (2,))
    for row in np.random.default_rng(1).normal(size=(20, 2)):
        why = tree.explain(row)
        assert why.leaf == tree.apply(row[None])[0]
        assert len(why.tests) == tree.tests(row[None])[0]
        assert all((test.weights @ row + test.bias > 0) == test.holds for test in why.tests)
        np.testing.assert_allclose(why.weights @ row + why.bias, said(model, row[None])[0], atol=1e-12)
    root = ElementTree.fromstring(tree.picture(("a", "b"), example=row, levels=9))
    marked = [path for path in root.iter(f"{SVG}path") if path.get("stroke") == "#d33"]
    assert len(marked) == len(why.tests)


def test_tests_on_one_input_are_solved_for_it():
    tree = to_tree(net(1, 1), (1,))
    knot = -tree.biases[0] / tree.weights[0, 0]
    above, below = tree.explain([knot + 1]), tree.explain([knot - 1])
    assert above.tests[0].words(("height",)) == f"height > {knot:.3g}" or "height >=" in above.tests[0].words(("height",))
    assert "height <" in below.tests[0].words(("height",))


def test_counts_are_the_papers_for_its_toy():
    """Five leaves on a line: 14 numbers, 2 operations; the network keeps 13."""
    tree = to_tree(net(1, 2, 2, outputs=1, activation=nn.LeakyReLU, seed=1), (1,))
    assert tree.stored == 3 * tree.n_leaves - 1  # a threshold each test, slope and shift each leaf
    assert tree.operations(np.zeros((1, 1))) == 2


@pytest.mark.parametrize(("inputs", "width"), [(1, 4), (2, 4)])
def test_two_layers_cut_no_more_than_the_square_of_what_one_can(inputs, width):
    assert paper.regions(2, 3) == 7  # three lines in general position
    for seed in range(3):
        tree = to_tree(net(inputs, width, width, activation=nn.LeakyReLU, seed=seed), (inputs,))
        assert width < tree.n_leaves <= paper.regions(inputs, width) ** 2


def test_too_large_a_tree_is_refused():
    with pytest.raises(ValueError, match="more than 50 leaves"):
        to_tree(net(4, 8), (4,), max_leaves=50)
    tree = to_tree(net(2, 2), (2,))
    with pytest.raises(ValueError, match="2 numbers"):
        tree.predict(np.zeros((1, 3)))


def test_probe_tells_what_autograd_tells():
    torch.manual_seed(0)
    model = mlp(5, 3, (8, 8)).eval()
    inputs, background = torch.randn(6, 5), torch.randn(50, 5)
    target = model(inputs).argmax(dim=1)
    view = View(model, inputs, target, None, background, None, "table", classes=("a", "b", "c"))
    seen = linear_pieces(view)
    leaf = inputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).gather(1, target[:, None]).sum(), leaf)
    torch.testing.assert_close(seen.attributions["weight of its linear function x input"], gradient * inputs)
    assert (seen.each["distance to the next linear function"] > 0).all()
    assert all(0 <= value <= 50 for value in seen.numbers.values())
    alone = linear_pieces(View(model, inputs, target, None, background[:0], None, "table", classes=("a", "b", "c")))
    assert "leaves of the tree of these examples" in alone.numbers  # without a background it is made of what is shown
    assert alone.numbers["share of these examples of which that tree says the network's class"] == 1
    with pytest.raises(AssayError, match="kind text"):
        linear_pieces(View(model, inputs, target, None, background, None, "text"))


def test_claims_measure_what_they_expect(home):
    lab = Lab(seed=0, scale="smoke")
    measured = {}
    for claim in (paper.exactly_equal, paper.impossible_paths, paper.cheaper_when_tiny):
        measured |= claim(lab)
        assert judge(claim.expect, {0: measured}).seeds == 1
    assert measured["largest difference, whole trees"] < 1e-9
