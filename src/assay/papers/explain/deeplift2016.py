"""DeepLIFT: what an input contributed, as a difference from a reference input instead of a slope.

A gradient says nothing where a network is already sure: a unit that has saturated, or a ReLU that is shut, passes none, although
something in the input brought it there. DeepLIFT compares each unit with what it does on a reference input, one that says
nothing. The difference of a unit's output over the difference of its input is the unit's multiplier; multipliers are chained
from the output to the inputs as gradients are, in one backward pass, and a multiplier times the input's own difference is the
input's contribution. Contributions sum to the difference of the scores ("summation to delta").

The rules are :func:`assay.explain.deeplift`'s, which works on any network; the paper's own choice for a product of two hidden
values (each takes half of the mixed term) and for a maximum are among them. Here stand the paper's two normalisations, which
leave the function as it is and take out of the scores what is no evidence, and its claims. Scores must be logits.

Source: Shrikumar, Greenside, Shcherbina and Kundaje, "Not Just a Black Box: Learning Important Features Through Propagating
Activation Differences", arXiv:1605.01713, 2016. Section numbers are the paper's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.explain import Epsilon, deeplift, gradient, input_x_gradient, lrp
from assay.paper import Above, Below, Curve, Higher, claim
from assay.recipe import Recipe, probe
from assay.recipes import lenet_on
from assay.view import Seen

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.view import View


@torch.no_grad()
def normalise_logits(head: nn.Linear) -> nn.Linear:
    """The same last layer with the mean over classes taken out of its weights and biases (section 2.5).

    Adding a number to all logits changes no probability, so what raises all of them alike should count for nothing. The softmax
    of the outputs stays the same.

    Args:
        head: gives the logits.

    Returns:
        A copy.
    """
    centred = copy.deepcopy(head)
    centred.weight.sub_(head.weight.mean(dim=0))
    if head.bias is not None:
        centred.bias.sub_(head.bias.mean())
    return centred


@torch.no_grad()
def normalise_letters(first: nn.Conv1d) -> nn.Conv1d:
    """The same first layer for one-hot letters, with the mean over letters moved from the weights into the bias (section 2.5).

    One letter of every place is 1, so a number that is added to the weights of all letters at a place is a bias in disguise, and
    would be credited to whatever letter stands there. Outputs stay the same where every place has its letter; padding does not.

    Args:
        first: sees (B, letters, L), unpadded.

    Returns:
        A copy with a bias.

    Raises:
        ValueError: the layer pads, so that places without a letter come in, or has groups.
    """
    if first.groups != 1 or first.padding not in (0, (0,), "valid"):
        raise ValueError("weights of letters can be normalised in a convolution without padding and groups")
    mean = first.weight.mean(dim=1, keepdim=True)  # (O, 1, width)
    bias = mean.sum(dim=(1, 2)) if first.bias is None else first.bias + mean.sum(dim=(1, 2))
    centred = copy.deepcopy(first)
    centred.weight.sub_(mean)
    centred.bias = nn.Parameter(bias)
    return centred


@probe
def differences(view: View, baseline: float = 0.0) -> Seen:
    """What each input contributed to the score of a class, relative to an input that says nothing.

    Args:
        view: any network and examples.
        baseline: what an input is that says nothing, in the units that the network takes: 0 is black in an image, the mean in a
            scaled column or series, no word in a text.
    """
    found = deeplift(view.model, view.inputs, view.target, baseline=baseline)
    gained = _gained(view.model, view.inputs, torch.full_like(view.inputs[:1], baseline), view.target)
    missing = found.flatten(1).sum(dim=1) - gained
    rough = bool((missing.abs() > 0.05 * gained.abs()).double().mean() > 0.5)
    return Seen(
        each={"score above the reference's": gained, "missing in the sum": missing},
        attributions={"DeepLIFT": found},
        notes=("the contributions miss the score by more than 5 % for most examples: the network compares inside",) * rough,
    )


@torch.no_grad()
def _gained(model: nn.Module, inputs: Tensor, reference: Tensor, target: Tensor) -> Tensor:
    """The score minus the reference's: (B,). The model is in evaluation mode."""
    difference: Tensor = model(inputs) - model(reference.expand_as(inputs))
    return difference.view(len(inputs), -1).gather(1, target.unsqueeze(1)).squeeze(1)


# ------------------------------------------------------------------------------------------------------------- claims

_BACKGROUND = (0.3, 0.2, 0.2, 0.3)  # A, C, G, T
_GATA = "WGATAR"  # W: A or T, R: A or G
_TAL = "CAGATG"
_CHOICES = {"A": "AA", "C": "CC", "G": "GG", "T": "TT", "W": "AT", "R": "AG"}
_SLOT = 10


def motif_sequences(count: int, generator: torch.Generator, length: int = 120) -> tuple[Tensor, Tensor, Tensor]:
    """Random DNA with planted binding sites: in a quarter each none, those of GATA1, those of TAL1, and both.

    A protein that binds does so at one to four places, each as likely.

    Args:
        count: of sequences.
        generator: seeded.
        length: letters of a sequence, a multiple of 10.

    Returns:
        Sequences (N, 4, L) one-hot, labels (N, 3) for GATA1, TAL1 and both, and places (N, 2, L), True within a site of each.
    """
    letters = torch.multinomial(torch.tensor(_BACKGROUND), count * length, True, generator=generator).view(count, length)
    group = torch.randint(4, (count,), generator=generator)
    present = torch.stack([group % 2 == 1, group >= 2], dim=1)  # (N, 2)
    copies = torch.randint(1, 5, (count, 2), generator=generator) * present
    slots = torch.rand(count, length // _SLOT, generator=generator).argsort(dim=1)  # an order of places for each
    places = torch.zeros(count, 2, length, dtype=torch.bool)
    for which, motif in enumerate((_GATA, _TAL)):
        choices = torch.tensor([["ACGT".index(letter) for letter in _CHOICES[code]] for code in motif])  # (6, 2)
        for turn in range(4):
            rows = (copies[:, which] > turn).nonzero().squeeze(1)
            start = slots[rows, 4 * which + turn] * _SLOT + torch.randint(_SLOT - len(motif), (len(rows),), generator=generator)
            where = start.unsqueeze(1) + torch.arange(len(motif))  # (n, 6)
            pick = torch.randint(2, where.shape, generator=generator)
            letters[rows.unsqueeze(1), where] = choices[torch.arange(len(motif)), pick]
            places[rows.unsqueeze(1), which, where] = True
    labels = torch.stack([present[:, 0], present[:, 1], present.all(dim=1)], dim=1).float()
    return F.one_hot(letters, 4).transpose(1, 2).float(), labels, places


def _motif_net(length: int) -> nn.Module:
    """Filters for motifs, the best response in each of several stretches, sigmoid units that saturate, three tasks."""
    stretches = (length - 10) // 22
    layers = [nn.Conv1d(4, 32, 11), nn.ReLU(), nn.MaxPool1d(22), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(32 * stretches, 64), nn.Sigmoid(), nn.Linear(64, 3))


_COPIES = (1, 2, 3, 4)


@claim(
    "Where a sequence holds four copies of a motif, so that the units which see them are saturated, DeepLIFT's scores, ranked "
    "over the places of all sequences, find the copies better than gradient x input does.",
    expect=Higher("DeepLIFT", than="gradient x input", by=0.05),
    scaled_down="Simulated DNA of 120 letters instead of 200, 4,000 training sequences; GATA1 and TAL1 sites as in the authors' "
    "later examples. First-layer weights are mean-normalised over letters for every method, the reference is the background.",
    unit="average precision of |score| for the places of GATA1 sites, four copies",
)
def credit_through_saturation(lab: Lab) -> Measured:
    length = 120
    train = motif_sequences(lab.pick(smoke=300, laptop=4000, full=20000), lab.generator(1), length)
    test = motif_sequences(lab.pick(smoke=200, laptop=2000, full=5000), lab.generator(2), length)
    splits = {name: Split(inputs, labels) for name, (inputs, labels, _) in {"train": train, "test": test}.items()}
    data = Dataset(
        "gata-tal", "multilabel", train=splits["train"], valid=splits["test"].take(torch.arange(0)), test=splits["test"],
        classes=("GATA1", "TAL1", "both"), licence="made here", source="simulated",
    )  # fmt: skip
    recipe = Recipe(
        data,
        model=partial(_motif_net, length),
        loss=F.binary_cross_entropy_with_logits,
        optimizer=partial(torch.optim.Adam, lr=2e-3),
        epochs=lab.pick(smoke=1, laptop=12, full=20),
        batch_size=64,
    )
    model = lab.train(recipe).model
    assert isinstance(model, nn.Sequential)
    assert isinstance(model[0], nn.Conv1d)
    network = nn.Sequential(normalise_letters(model[0]), *list(model)[1:]).eval()
    inputs, _, places = (one.to(lab.device) for one in test)
    copies = places[:, 0].sum(dim=1) // len(_GATA)
    with torch.no_grad():
        seen = network(inputs)[:, 0] > 0  # sequences in which the network says that GATA1 binds
    background = torch.tensor(_BACKGROUND, device=lab.device).view(1, 4, 1).expand(1, 4, length)
    methods: dict[str, Callable[[nn.Module, Tensor, int], Tensor]] = {
        "DeepLIFT": lambda model, inputs, target: deeplift(model, inputs, target, baseline=background),
        "gradient x input": input_x_gradient,
        "gradient": lambda model, inputs, target: gradient(model, inputs, target).abs(),
    }
    arms: dict[str, float | Curve] = {}
    for arm, method in methods.items():
        found = []
        for number in _COPIES:
            some = (copies == number) & seen
            if not some.any():  # a network of the smoke scale may see nothing
                some = copies == number
            scores = method(network, inputs[some], 0).sum(dim=1).abs()  # (n, L)
            found.append(float(average_precision_score(places[some, 0].flatten().cpu(), scores.flatten().cpu())))
        arms[arm] = Curve(found, x=_COPIES, x_name="copies of the motif", y_name="average precision")
    return arms


class _Gated(nn.Module):
    """30 measurements, one hidden layer whose units are gated by others, as in an LSTM: a * sigmoid(b)."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate, self.head = nn.Linear(30, 32), nn.Linear(30, 32), nn.Linear(32, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.head(self.value(inputs).tanh() * self.gate(inputs).sigmoid())
        return hidden


def _sigmoids() -> nn.Module:
    return nn.Sequential(nn.Linear(30, 32), nn.Sigmoid(), nn.Linear(32, 32), nn.Sigmoid(), nn.Linear(32, 2))


def _digits(lab: Lab) -> Recipe:
    data = lab.data(lab.pick(smoke="mnist5k", laptop="mnist5k", full="mnist"))
    data = data.subset(train=200, test=100) if lab.scale == "smoke" else data
    return lenet_on(data, epochs=lab.pick(smoke=1, laptop=8, full=8))


def _explained(lab: Lab, recipe: Recipe) -> tuple[nn.Module, Tensor, Tensor]:
    """A trained network, some test inputs, and the classes that it predicts for them."""
    model, inputs = lab.train(recipe).model, recipe.data.test.inputs
    assert isinstance(inputs, Tensor)
    count = lab.pick(smoke=20, laptop=100, full=1000)
    inputs = inputs[torch.randperm(len(inputs), generator=lab.generator())[:count]].to(lab.device)
    with torch.no_grad():
        return model, inputs, model(inputs).argmax(dim=1)


@claim(
    "DeepLIFT's contributions sum to the difference of the scores, but for rounding, in a network of ReLUs and max pooling, in "
    "one of sigmoids and in one with products of hidden units, while gradient x input misses it.",
    expect=(
        Below("DeepLIFT, ReLU and max pooling", 1e-4),
        Below("DeepLIFT, sigmoids", 1e-4),
        Below("DeepLIFT, products", 1e-4),
        Above("gradient x input, ReLU and max pooling", 0.05),
        Above("gradient x input, sigmoids", 0.05),
        Above("gradient x input, products", 0.05),
    ),
    scaled_down="A LeNet on MNIST 5k and small networks on 30 measurements of tumours; 100 test examples each.",
    unit="median of |sum - score difference| / |score difference|",
)
def sums_to_delta(lab: Lab) -> Measured:
    tumours = Recipe(
        lab.data("breast-cancer").normalise(),
        model=_sigmoids,
        optimizer=partial(torch.optim.Adam, lr=1e-2),
        epochs=lab.pick(smoke=2, laptop=20, full=20),
        batch_size=32,
    )
    recipes = {
        "ReLU and max pooling": _digits(lab),
        "sigmoids": tumours,
        "products": tumours.replace(model=_Gated),
    }
    arms = {}
    for name, recipe in recipes.items():
        model, inputs, target = _explained(lab, recipe)
        gained = _gained(model, inputs, torch.zeros_like(inputs[:1]), target)
        for arm, found in {
            "DeepLIFT": deeplift(model, inputs, target),
            "gradient x input": input_x_gradient(model, inputs, target),
        }.items():
            summed = found.flatten(1).sum(dim=1)
            arms[f"{arm}, {name}"] = ((summed - gained).abs() / gained.abs()).median().item()
    return arms


@claim(
    "In a network of ReLUs, layer-wise relevance propagation without a stabiliser gives gradient x input, so it is blind where "
    "the gradient is; DeepLIFT gives something else.",
    expect=(Below("LRP", 1e-4), Above("DeepLIFT", 0.05)),
    scaled_down="A LeNet on MNIST 5k, 100 test images.",
    unit="mean over images of the largest difference from gradient x input, relative to its largest value",
)
def lrp_is_gradient_x_input(lab: Lab) -> Measured:
    model, images, target = _explained(lab, _digits(lab))
    # Double precision: sums of LRP that cancel to almost nothing are then still told from nothing.
    network, images = copy.deepcopy(model).double(), images.double()
    product = input_x_gradient(network, images, target)
    largest = product.abs().flatten(1).amax(dim=1)

    def differs(found: Tensor) -> float:
        return ((found - product).abs().flatten(1).amax(dim=1) / largest).mean().item()

    return {
        "LRP": differs(lrp(network, images, target, rule=Epsilon(0.0))),
        "DeepLIFT": differs(deeplift(network, images, target)),
    }
