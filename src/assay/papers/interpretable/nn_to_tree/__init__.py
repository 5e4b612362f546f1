"""Neural networks are decision trees: the exact tree of a small network, cleaned of what cannot happen.

A network whose activations are piecewise linear (ReLU, leaky ReLU, hard tanh) is linear as long as no unit crosses a knot of its
activation. So "is unit j of layer i above its knot?" is, once the answers of the layers before are known, a linear inequality in
the input:

    What_0 = W_0,        bhat_0 = b_0
    What_i = W_i diag(a_{i-1}) What_{i-1},    bhat_i = W_i (a_{i-1} * bhat_{i-1} + o_{i-1}) + b_i

with slopes a and offsets o of the pieces that the answers chose. Asking unit after unit gives a binary tree whose tests are
linear inequalities and whose leaves are linear functions, and which says exactly what the network says. It has 2^n leaves for n
ReLUs, nearly all of them for answers that no input gives. Whether an input does is a linear programme: the largest ball that
fits between the path's hyperplanes. A child with no room for one is left out, and a test with one child left is no test.

The tree is small where inputs are few. For a network of practical size only those paths can be built that given examples take:
that tree says what the network says on these examples, and something near it elsewhere. A smooth activation (sigmoid, tanh) has
infinitely many pieces; the paper's tree for it has infinitely many branches and cannot be built.

Source: Aytekin, "Neural Networks are Decision Trees", 2022.
"""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.datasets import make_moons
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.nn import mlp
from assay.nn.measure import parameters
from assay.nn.piecewise import Floats, chain, local_functions
from assay.paper import Below, Curve, Higher, Lower, Reported, claim
from assay.papers.interpretable.nn_to_tree.growing import Grower, merged
from assay.papers.interpretable.nn_to_tree.tree import LinearTree
from assay.recipe import Recipe, probe
from assay.train.schedules import cosine
from assay.view import Seen, View

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured


def to_tree(
    model: nn.Module,
    shape: tuple[int, ...],
    *,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    visited_by: ArrayLike | None = None,
    prune: bool = True,
    margin: float = 1e-9,
    max_leaves: int = 20_000,
) -> LinearTree:
    """The decision tree that a network is.

    Args:
        model: layers in a row with piecewise linear activations (ReLU, leaky ReLU, ReLU6, hard tanh, hard sigmoid).
        shape: of one input, e.g. ``(4,)``; inputs of any shape are flattened.
        low: smallest inputs to think of, a number or one for each input; ``None`` knows no bound. Outside of the bounds the tree
            may be wrong.
        high: largest inputs, likewise.
        visited_by: (N, ...) inputs; only the paths that they take are built. The tree is exact on them, and sends another input
            the way of those it parts from last. No linear programme is solved.
        prune: leave out the paths that no input takes; ``False`` gives 2^n leaves for n ReLUs.
        margin: radius of the ball that must fit into a region for it to count. A region that is thinner is lost, where the tree
            is then wrong by about as much times the slope.
        max_leaves: a tree with more is refused.

    Returns:
        The tree, with siblings of the same function made one leaf.

    Raises:
        ValueError: the network is no row of such layers, or the tree becomes too large.
    """
    net = chain(model, shape)
    size = int(np.prod(shape))
    grower = Grower(size, _box(low, size, -np.inf), _box(high, size, np.inf), prune, margin, max_leaves)
    if visited_by is not None:
        grower.visit(np.asarray(visited_by, dtype=np.float64).reshape(-1, size))
    return merged(grower.grow(net))


def _box(bound: ArrayLike | None, size: int, missing: float) -> Floats:
    return np.broadcast_to(np.asarray(missing if bound is None else bound, dtype=np.float64).reshape(-1), (size,))


@probe
def linear_pieces(view: View, examples: int = 200) -> Seen:
    """Which linear function the network is around each input, how far that holds, and the tree of what examples visit.

    Args:
        view: a network of layers in a row with ReLU or another piecewise linear activation, on images, series or a table.
        examples: of the usual ones, whose paths make the tree.
    """
    view.only("images", "audio", "series", "table")
    usual = view.background[:examples].cpu().numpy()
    shown = view.inputs.detach().cpu().numpy()
    maps, _, nearest = local_functions(view.model, shown)
    weights = maps[np.arange(len(shown)), view.target.cpu().numpy()].reshape(shown.shape)
    tree = to_tree(view.model, shown.shape[1:], visited_by=usual if len(usual) else shown)
    seen = {"distance to the next linear function": nearest, "tests asked by the tree": tree.tests(shown)}
    with torch.no_grad():
        outputs = view.model(view.inputs).cpu().numpy()
    made_of = "the usual" if len(usual) else "these"
    numbers = {f"leaves of the tree of {made_of} examples": float(tree.n_leaves)}
    if len(view.classes) > 1:
        same = tree.predict(shown).argmax(axis=1) == outputs.argmax(axis=1)
        numbers["share of these examples of which that tree says the network's class"] = float(same.mean())
    return Seen(
        numbers=numbers,
        each={name: torch.as_tensor(np.asarray(values, dtype=np.float64)) for name, values in seen.items()},
        attributions={"weight of its linear function x input": torch.as_tensor(weights * shown).to(view.inputs.dtype)},
        notes=(f"the tree is exact on {made_of} examples that made it",),
    )


# ------------------------------------------------------------------------------------------------------------ claims

_SMALL = "The paper shows the trees of two networks"


def leaky(in_features: int, outputs: int, hidden: tuple[int, int]) -> nn.Sequential:
    """Two hidden layers with leaky ReLUs of slope 0.3, as in the paper."""
    first, second = hidden
    return nn.Sequential(
        nn.Linear(in_features, first),
        nn.LeakyReLU(0.3),
        nn.Linear(first, second),
        nn.LeakyReLU(0.3),
        nn.Linear(second, outputs),
    )


def squared_difference(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error of outputs (B, 1) and numbers (B,)."""
    return F.mse_loss(outputs.squeeze(1), labels)


def _square(lab: Lab) -> Dataset:
    """The paper's first toy: y = x^2 at 5,000 places between -2.5 and 2.5."""
    x = torch.linspace(-2.5, 2.5, lab.pick(smoke=500, laptop=5000, full=5000)).unsqueeze(1)
    return Dataset("square", "regression", *_splits(x, x[:, 0].square(), lab), source="y = x^2")


def _wave(lab: Lab) -> Dataset:
    x = torch.linspace(-2.5, 2.5, 1000).unsqueeze(1)
    return Dataset("wave", "regression", *_splits(x, torch.sin(3 * x[:, 0]), lab), source="y = sin 3x")


def _moons(lab: Lab) -> Dataset:
    """The paper's second toy: two half moons."""
    x, y = make_moons(1000, noise=0.1, random_state=lab.seed)
    parts = _splits(torch.from_numpy(x).float(), torch.from_numpy(y), lab)
    return Dataset("moons", "classification", *parts, classes=("upper", "lower"), source="scikit-learn's make_moons")


def _splits(inputs: Tensor, labels: Tensor, lab: Lab) -> tuple[Split, Split, Split]:
    order = torch.randperm(len(inputs), generator=lab.generator())
    cut = len(inputs) * 4 // 5
    whole = Split(inputs, labels)
    return whole.take(order[:cut]), whole.take(order[:0]), whole.take(order[cut:])


def _trained(lab: Lab, data: Dataset, hidden: tuple[int, int]) -> tuple[nn.Module, Tensor]:
    """A small network trained on the data, and its test inputs.

    Networks of two units a layer often get stuck at a constant; of four starts the one with the least training loss is taken.
    """
    assert isinstance(data.test.inputs, Tensor)
    recipe = Recipe(
        data,
        model=partial(leaky, data.input_shape[0], data.num_classes, hidden),
        loss=squared_difference if data.task == "regression" else F.cross_entropy,
        optimizer=partial(torch.optim.Adam, lr=0.02),
        schedule=cosine,
        epochs=lab.pick(smoke=1, laptop=20, full=40) * max(1, 2000 // len(data.train)),
        batch_size=min(64, max(16, len(data.train) // 16)),
    )
    starts = 4 if hidden == (2, 2) and lab.scale != "smoke" else 1
    tried = [lab.train(recipe, seed=lab.seed + 1000 * start) for start in range(starts)]
    return min(tried, key=lambda trained: trained.history["train_loss"][-1]).model, data.test.inputs


def _tree(model: nn.Module, data: Dataset) -> LinearTree:
    """The tree within the range of the training inputs."""
    assert isinstance(data.train.inputs, Tensor)
    low, high = data.train.inputs.double().aminmax(dim=0)
    return to_tree(model, data.input_shape, low=low.numpy(), high=high.numpy())


def _outputs(model: nn.Module, inputs: ArrayLike) -> Floats:
    """What a network says in float64."""
    exact = copy.deepcopy(model).cpu().double().eval()
    with torch.no_grad():
        said: Floats = exact(torch.as_tensor(np.asarray(inputs, dtype=np.float64))).numpy()
    return said


def regions(inputs: int, hyperplanes: int) -> int:
    """Into how many regions hyperplanes cut a space of so many dimensions at most.

    A second layer cuts each region of the first again: two layers of the same width make the square of it at most.
    """
    return sum(math.comb(hyperplanes, k) for k in range(inputs + 1))


def at_the_edges(tree: LinearTree, inputs: Floats, offset: float, random: np.random.Generator) -> Floats:
    """Inputs moved onto the hyperplane of one of the tests that they are asked, and ``offset`` beyond or before it."""
    moved = inputs.copy()
    for row in moved:
        asked = tree.explain(row).tests
        if asked:
            test = asked[random.integers(len(asked))]
            norm = np.linalg.norm(test.weights)
            row -= test.weights / norm * ((test.weights @ row + test.bias) / norm + offset * random.choice((-1.0, 0.0, 1.0)))
    return moved


@claim(
    "The tree of a trained network, cleaned of impossible paths, gives the network's outputs to 1e-9 in float64: on test inputs, "
    "on 10,000 random ones, and on inputs moved to within 1e-9 of the tests. A CART with as many leaves, grown on what the "
    "network says of as many random inputs, differs from it in at least 1 % of the classes.",
    expect=(
        Below("largest difference, whole trees", 1e-9),
        Below("largest difference, paths of 1,000 digits", 1e-9),
        Higher("tree, same class", than="CART with as many leaves, same class", by=0.01),
    ),
    scaled_down=f"{_SMALL}, on y = x^2 and on half moons; here also irises, wines and tumours, and paths that digits visit.",
    unit="difference of outputs, or share of random inputs",
)
def exactly_equal(lab: Lab) -> Measured:
    random = np.random.default_rng(lab.seed)
    count = lab.pick(smoke=300, laptop=10_000, full=100_000)
    hidden = lab.pick(smoke=(2, 2), laptop=(4, 4), full=(6, 6))
    toys = {"y = x^2": (_square(lab), (2, 2)), "moons": (_moons(lab), (2, 2))}
    tables = {name: (lab.data(name).normalise(), hidden) for name in ("iris", "wine", "breast-cancer")}
    largest, same, cart_same = 0.0, [], []
    for data, units in {**toys, **tables}.values():
        model, tests = _trained(lab, data, units)
        tree = _tree(model, data)
        low, high = data.train.inputs.double().aminmax(dim=0)  # type: ignore[union-attr]
        inside = tests.double().clamp(low, high).numpy()  # the tree knows the range of the training inputs
        uniform = random.uniform(low.numpy(), high.numpy(), (count, len(low)))
        edges = at_the_edges(tree, uniform[:1000], 1e-9, random).clip(low.numpy(), high.numpy())
        for inputs in (inside, uniform, edges):
            largest = max(largest, float(np.abs(tree.predict(inputs) - _outputs(model, inputs)).max()))
        if data.task == "classification":
            said = _outputs(model, uniform).argmax(axis=1)
            others = random.uniform(low.numpy(), high.numpy(), uniform.shape)
            cart = DecisionTreeClassifier(max_leaf_nodes=max(2, tree.n_leaves), random_state=0)
            cart.fit(others, _outputs(model, others).argmax(axis=1))
            same.append(float((tree.predict(uniform).argmax(axis=1) == said).mean()))
            cart_same.append(float((cart.predict(uniform) == said).mean()))
    return {
        "largest difference, whole trees": largest,
        "tree, same class": float(np.mean(same)),
        "CART with as many leaves, same class": float(np.mean(cart_same)),
        **_digits(lab),
    }


def _digits(lab: Lab) -> dict[str, float]:
    """The tree of the paths that test digits take, and how far one made of training digits is right about test digits."""
    data = lab.data(lab.pick(smoke="digits", laptop="mnist5k", full="mnist5k"))
    recipe = Recipe(
        data,
        model=partial(mlp, math.prod(data.input_shape), 10, (16, 16)),
        schedule=cosine,
        epochs=lab.pick(smoke=1, laptop=10, full=30),
        batch_size=64,
    )
    model = lab.train(recipe).model
    train, test = data.train.inputs, data.test.inputs
    assert isinstance(train, Tensor)
    assert isinstance(test, Tensor)
    said = _outputs(model, test)
    own = to_tree(model, data.input_shape, visited_by=test.numpy())
    others = to_tree(model, data.input_shape, visited_by=train[: len(test)].numpy())
    return {
        "largest difference, paths of 1,000 digits": float(np.abs(own.predict(test) - said).max()),
        "paths of 1,000 digits, leaves": float(own.n_leaves),
        "paths of other digits, same class": float((others.predict(test).argmax(axis=1) == said.argmax(axis=1)).mean()),
    }


@claim(
    "Almost no path of the tree is possible: of the 2^24 leaves of 24 leaky ReLUs in two layers, on one or two inputs, fewer "
    "stay than half of what two layers of hyperplanes can cut at most. Their number grows from width 4 to 12 with a power of "
    "less than 1.5 for one input and 2.5 for two. For y = x^2 and four units fewer than 8 of 16 leaves stay.",
    expect=(
        # Not than 2^units: the most that can be cut, 169 and 6,241, is far below, and no network could have failed.
        Lower("1 input", than="1 input, at most", times=0.5),
        Lower("2 inputs", than="2 inputs, at most", times=0.5),
        Below("1 input, power of the width", 1.5),
        Below("2 inputs, power of the width", 2.5),
        Below("y = x^2, 4 units", 8),
    ),
    reported=Reported("y = x^2, leaky ReLUs in layers of 2 and 2: leaves", {"y = x^2, 4 units": 5, "2^units": 16}, "Fig. 3"),
    scaled_down=f"{_SMALL} of four units; here up to 24, on a sine, half moons and irises (4 inputs, up to 12 units).",
    unit="leaves",
)
def impossible_paths(lab: Lab) -> Measured:
    widths = lab.pick(smoke=(2, 3), laptop=(2, 4, 6, 8, 12), full=(2, 4, 6, 8, 12, 16, 24))
    four = lab.pick(smoke=(2,), laptop=(2, 4, 6), full=(2, 4, 6, 8))
    square = _square(lab)
    arms: dict[str, float | Curve] = {"y = x^2, 4 units": _tree(_trained(lab, square, (2, 2))[0], square).n_leaves}
    sets = {"1 input": (_wave(lab), widths), "2 inputs": (_moons(lab), widths), "4 inputs": (lab.data("iris").normalise(), four)}
    for arm, (data, sizes) in sets.items():
        leaves = [_tree(_trained(lab, data, (width, width))[0], data).n_leaves for width in sizes]
        units = [2 * width for width in sizes]
        arms[arm] = Curve(leaves, x=units, x_name="units", y_name="leaves")
        most = [float(regions(data.input_shape[0], width) ** 2) for width in sizes]
        arms[f"{arm}, at most"] = Curve(most, x=units, x_name="units", y_name="leaves")
        # From width 4 on: what a unit or two more do to networks that hardly learn anything is chance.
        first = int(len(sizes) > 2)
        if len(sizes) > 1:
            arms[f"{arm}, power of the width"] = float(np.polyfit(np.log(sizes[first:]), np.log(leaves[first:]), 1)[0])
    units = [2 * width for width in widths]
    arms["2^units"] = Curve([2.0**n for n in units], x=units, x_name="units", y_name="leaves")
    return arms


@claim(
    "For very small networks the tree is cheaper than the network: at most 80 % of the comparisons an input on y = x^2, at most "
    "60 % of the multiplications and additions on half moons; there it keeps at least half as many numbers again.",
    expect=(
        # On one input the tree multiplies once, whatever it is; what may fail there is the comparisons (2.6 of 4 in the paper).
        Lower("y = x^2, tree, comparisons", than="y = x^2, network, comparisons", times=0.8),
        Lower("moons, tree", than="moons, network", times=0.6),
        Higher("moons, tree, numbers kept", than="moons, network, numbers kept", times=1.5),
    ),
    scaled_down="As large as in the paper; half moons with two layers of eight units are shown besides.",
    unit="multiplications and additions an input",
)
def cheaper_when_tiny(lab: Lab) -> Measured:
    arms: dict[str, float | Curve] = {}
    for name, data, hidden in (
        ("y = x^2", _square(lab), (2, 2)),
        ("moons", _moons(lab), (2, 2)),
        ("moons, wider", _moons(lab), lab.pick(smoke=(3, 3), laptop=(8, 8), full=(8, 8))),
    ):
        model, tests = _trained(lab, data, hidden)
        tree = _tree(model, data)
        arms[f"{name}, tree"] = tree.operations(tests)
        arms[f"{name}, network"] = float(2 * sum(weight.numel() for weight in model.parameters() if weight.dim() == 2))
        arms[f"{name}, tree, numbers kept"] = float(tree.stored)
        arms[f"{name}, network, numbers kept"] = float(parameters(model))
        arms[f"{name}, tree, comparisons"] = float(tree.tests(tests).mean())
        arms[f"{name}, network, comparisons"] = float(sum(hidden))
    return arms
