"""Neural sampling machines: units that only fire or do not, on synapses that never stop being noisy.

Noise that multiplies weights is something that analogue hardware and brains have for nothing. Put it on every synapse of a
network of threshold units, in training and in use, and it does the work of two other parts. A unit computes

    u_i = sum_j (xi_ij + a_i) w_ij z_j + b_i,    z_i = sign(u_i),    z in {-1, +1},    xi drawn anew for every presentation

and since the deviation of u_i is proportional to ||w_i||, as its mean is to w_i . z, the probability that it fires,

    P(z_i = 1 | z) = 1/2 (1 + erf(beta_i w_i . z / ||w_i|| + b_i / (s ||w_i||))),    beta_i = (E[xi] + a_i) / s

depends on the direction of the weights alone: it is weight normalisation, which nobody has programmed, with beta as its gain.
(s is sqrt(2 p (1 - p)) if a synapse lets through with probability p, and sqrt(2) sigma for normal noise around 1.) And since
the network never answers the same twice, the spread of a hundred answers says how sure it is. Gradients are those of the
expected state 2P - 1, at the sampled states.

The formula is exact for normal noise, by the central limit theorem for the other. A unit with bias is normalised together with
it: the law stays if w and b are scaled alike.

Source: Detorakis, Dutta, Khanna, Jerry, Datta and Neftci, "Inherent Weight Normalization in Stochastic Neural Networks",
NeurIPS 2019. As in their code, one xi is drawn for each input of a layer and shared by all its units (``per_synapse`` draws for
each unit), and beta is what is trained. There the states that a layer passes on are relaxed ones (binary concrete), here the
sampled; a convolution here has a gain for each plane, there for each place; and its input is padded with units that are off.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from assay.data.dataset import channel_scale
from assay.data.shift import rotate
from assay.errors import AssayError
from assay.paper import Close, Configuration, Curve, Higher, Lower, Score, claim
from assay.papers.architectures.neural_sampling_machine.layers import Noise, NSMConv2d, NSMLinear, Units
from assay.recipe import Recipe, treatment
from assay.train.hooks import Hook, Run
from assay.train.schedules import cosine

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained


def nsm_mlp(sizes: Sequence[int] = (784, 300, 300, 300, 10), **noise: Any) -> nn.Sequential:
    """The paper's perceptron: layers of threshold units on the signs of the inputs, and a linear layer on the last states.

    Args:
        sizes: inputs, units of each hidden layer, logits.
        noise: as for :class:`NSMLinear`.

    Shape: (B, ...) of ``sizes[0]`` numbers about 0 -> (B, sizes[-1]).
    """
    layers = [NSMLinear(*pair, **noise) for pair in pairwise(sizes[:-1])]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-2], sizes[-1]))


def nsm_lenet(
    in_channels: int = 1,
    num_classes: int = 10,
    size: int = 28,
    widths: tuple[int, int, int] = (32, 64, 512),
    **noise: Any,
) -> nn.Sequential:
    """The paper's convolutional network for digits; its convolutions let through with p = 0.25 unless told otherwise.

    Args:
        in_channels: planes of the input.
        num_classes: logits.
        size: height and width of the input, 4k for a k of at least 4.
        widths: planes of both 5x5 convolutions, units of the hidden layer.
        noise: as for :class:`NSMLinear`.

    Shape: (B, in_channels, size, size), numbers about 0 -> (B, num_classes).
    """
    first, second, hidden = widths
    around = {"p": 0.25} | noise
    return nn.Sequential(
        NSMConv2d(in_channels, first, 5, **around),
        nn.MaxPool2d(2),
        NSMConv2d(first, second, 5, **around),
        nn.MaxPool2d(2),
        nn.Flatten(),
        NSMLinear(second * (size // 4 - 3) ** 2, hidden, **noise),
        nn.Linear(hidden, num_classes),
    )


#: Both networks, and what they are known to measure in one pass, for which every unit adds up with noise and without.
CONFIGURATIONS = {
    "nsm_mlp()": Configuration((784,), parameters=420_010, macs=833_400, layers=4),
    "nsm_lenet()": Configuration((1, 28, 28), parameters=582_634, macs=8_528_896, layers=4, sees=16, activations=22_528),
}


# ------------------------------------------------------------------------------------------------------- many passes


class Sampled(NamedTuple):
    """What many passes say, each field with a row for each example.

    Attributes:
        mean: (B, C) mean probabilities: the prediction.
        std: (B, C) their deviation over passes.
        spread: (B,) how much the passes contradict one another, in nats: what a pass tells of the class on average (mutual
            information of class and noise); 0 where all say the same, be it that nothing is certain.
    """

    mean: Tensor
    std: Tensor
    spread: Tensor


@torch.no_grad()
def mc_predict(model: nn.Module, inputs: Tensor, passes: int = 100, seed: int | None = None) -> Sampled:
    """Ask a noisy network many times.

    Args:
        model: (B, ...) -> logits (B, C); it is used as it is: what is random only in training, as dropout, is to be in that mode.
        inputs: (B, ...).
        passes: how often; the paper asks 100 times.
        seed: of the noise, which leaves torch's generator as it was; ``None`` draws from there.
    """
    net = model.net if isinstance(model, MonteCarlo) else model
    devices = [inputs.device] if inputs.is_cuda else []
    with torch.random.fork_rng(devices=devices, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        logs = torch.stack([net(inputs).log_softmax(dim=1) for _ in range(passes)])  # (passes, B, C)
    probs = logs.exp()
    mean = probs.mean(dim=0)
    return Sampled(mean, probs.std(dim=0, correction=0), (entropy(mean) + (probs * logs).sum(dim=2).mean(dim=0)).clamp_min(0))


def entropy(probs: Tensor) -> Tensor:
    """(..., C) -> (...), in nats."""
    found: Tensor = -torch.special.xlogy(probs, probs).sum(dim=-1)
    return found


class MonteCarlo(nn.Module):
    """A network with noisy units that averages: one pass in training, several in evaluation.

    The noise of the passes is then the same for every example and every call (:func:`repeatable_uniform`), so that what is
    said of an example does not hang on the others of its batch. For fresh noise ask :func:`mc_predict`.

    Args:
        net: (B, ...) -> logits (B, C).
        passes: of an evaluation.

    Shape: (B, ...) -> (B, C): logits in training, in evaluation logarithms of the mean probabilities.
    """

    def __init__(self, net: nn.Module, passes: int = 16) -> None:
        super().__init__()
        self.net, self.passes = net, passes
        for place, layer in enumerate(self._layers()):
            layer.stream = place

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            return self.net(inputs)  # type: ignore[no-any-return]
        layers, logs = self._layers(), []
        try:
            for number in range(self.passes):
                for layer in layers:
                    layer.draw = number
                logs.append(self.net(inputs).log_softmax(dim=1))
        finally:
            for layer in layers:
                layer.draw = None
        return torch.stack(logs).logsumexp(dim=0) - math.log(self.passes)

    def _layers(self) -> list[Units]:
        return [module for module in self.net.modules() if isinstance(module, Units)]


def small(num_classes: int, in_channels: int = 1) -> nn.Module:
    """A small :func:`nsm_lenet` for 28x28 that averages over its noise."""
    return MonteCarlo(nsm_lenet(in_channels, num_classes, widths=(8, 16, 128)), passes=8)


def paper_training(recipe: Recipe) -> Recipe:
    """Adam with the paper's rate for digits, 3e-4."""
    return recipe.replace(optimizer=partial(torch.optim.Adam, lr=3e-4))


# ------------------------------------------------------------------------------------------------- other people's networks

#: What a forward may call in the place of such a module, or of dropout.
_FUNCTIONS = {
    *("relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardtanh"),
    *("tanh", "tanh_", "sigmoid", "sigmoid_", "softplus", "dropout", "dropout2d"),
}

_NO_UNITS = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax)  # of torch's activations those that join several units


def with_sampling_units(model: nn.Module, noise: Noise = "bernoulli", per_synapse: bool = False) -> nn.Module:
    """A network with noisy threshold units in the place of its activations; weights and their names stay.

    Linear layers and convolutions but the read-out become :class:`NSMLinear` and :class:`NSMConv2d`. Activations, batch
    normalisation and dropout after them become nothing: a unit is all of that.

    Args:
        model: its layers are changed, and it is returned; where its forward calls activations as functions, a graph of it
            without them (``torch.fx``). The first layer takes inputs as they are.
        noise: ``"bernoulli"`` or ``"gaussian"``; how strong it is would not matter, the gains make up for it.
        per_synapse: as for :class:`NSMLinear`.

    Raises:
        AssayError: there is no hidden layer of these kinds.
    """
    model = _without_functions(model)
    named = dict(model.named_modules())
    weighty = [name for name, module in named.items() if any(own.dim() > 1 for own in module.parameters(recurse=False))]
    hidden = [name for name in weighty[:-1] if type(named[name]) in (nn.Linear, nn.Conv2d)]
    if not hidden:
        raise AssayError("The network has no hidden linear layer or 2-d convolution whose units could be made noisy thresholds.")
    for name in hidden:
        layer: Any = named[name]
        layer.__class__ = NSMLinear if isinstance(layer, nn.Linear) else NSMConv2d  # in place: it may be used in several places
        layer.become(noise, 0.5, 1.0, per_synapse, real_inputs=name == weighty[0])
    for name, module in list(model.named_modules(remove_duplicate=False)):  # one nn.ReLU may stand in several places
        activates = type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, _NO_UNITS)
        if name and (activates or isinstance(module, (_BatchNorm, _DropoutNd))):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, nn.Identity())
    return model


class _Tracer(fx.Tracer):
    """Layers with weights of their own stay whole, whatever they call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or next(m.parameters(recurse=False), None) is not None


def _without_functions(model: nn.Module) -> nn.Module:
    """The network itself, or a graph of it without the activations that it calls as functions."""
    modes = {module: module.training for module in model.modules()}
    try:
        graphs = [fx.GraphModule(model, _Tracer().trace(model.train(mode))) for mode in (False, True)]
    except Exception:  # whatever a forward does that cannot be followed; a network of modules needs no graph
        return model
    finally:
        for module, mode in modes.items():
            module.training = mode
    found = 0
    for graph in graphs:
        for node in graph.graph.nodes:
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            if node.op in ("call_function", "call_method") and name in _FUNCTIONS:
                node.replace_all_uses_with(node.all_input_nodes[0])
                graph.graph.erase_node(node)
                found += 1
        graph.recompile()
    evaluating, training = graphs
    # Where training differs from evaluation in more than dropout, no one graph is the network.
    return training if found and training.code == evaluating.code else model


def _sampling(build: Callable[[], nn.Module], noise: Noise, per_synapse: bool, passes: int) -> MonteCarlo:
    return MonteCarlo(with_sampling_units(build(), noise, per_synapse), passes)


@treatment
def neural_sampling_machine(recipe: Recipe, noise: Noise = "bernoulli", per_synapse: bool = False, passes: int = 16) -> Recipe:
    """Make the hidden units of the recipe's network noisy thresholds, and average over the noise when it is used.

    Args:
        recipe: of a classifier with hidden linear layers or 2-d convolutions.
        noise: ``"bernoulli"`` or ``"gaussian"``.
        per_synapse: see :class:`NSMLinear`.
        passes: of an evaluation, at least one; its cost grows with them.

    Raises:
        AssayError: the data have no classes, or the network no such layers, or rectifies where it cannot be seen; or no passes.
    """
    data = recipe.data
    if data.task != "classification":
        raise AssayError(f"A sampling machine averages probabilities of classes, and {data.name!r} has none: leave it out.")
    if passes < 1:
        raise AssayError(f"A sampling machine answers by the mean of its passes, and passes={passes} are none: take 1 or more.")
    model = partial(_sampling, recipe.model, noise, per_synapse, passes)
    assert isinstance(data.train.inputs, Tensor)
    with torch.random.fork_rng(devices=[]):
        _require_signs(model().net, data.train.inputs[:8])
    return recipe.replace(model=model)


def _require_signs(net: nn.Module, examples: Tensor) -> None:
    """Units see -1 and 1: where something that was not found rectifies between two layers, the second sees nothing but 1."""
    dead: list[str] = []

    def look(name: str, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        if bool((given[0] >= 0).all()):
            dead.append(name)

    layers = {name: module for name, module in net.named_modules() if isinstance(module, Units) and not module.real_inputs}
    handles = [layer.register_forward_pre_hook(partial(look, name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            net.train()(examples)
    finally:
        for handle in handles:
            handle.remove()
    if dead:
        raise AssayError(
            f"What the network's layer {dead[0]!r} sees is never negative, so that threshold units would always see the same, "
            "and its activations cannot be found: write them as modules (nn.ReLU)."
        )


# ---------------------------------------------------------------------------------------------------- claims

_PASSES = 30  # where the paper's 100 would only cost more


class _HardSign(nn.Module):
    """A threshold whose gradient is that of the identity cut at -1 and 1, as binarised networks have it."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * (x.detach() >= 0).to(x.dtype) - 1 + (F.hardtanh(x) - F.hardtanh(x).detach())


_CONVENTIONAL: dict[str, Callable[[int], list[nn.Module]]] = {
    "tanh": lambda _: [nn.Tanh()],
    "sigmoid": lambda _: [nn.Sigmoid()],
    "dropout": lambda _: [nn.ReLU(), nn.Dropout(0.5)],
    "sign": lambda _: [_HardSign()],
    "sign, batch norm": lambda width: [nn.BatchNorm1d(width), _HardSign()],
}


def conventional(sizes: Sequence[int], units: str) -> nn.Sequential:
    """The same perceptron with units of another kind: one of the names in ``_CONVENTIONAL``; "dropout" has ReLU."""
    layers: list[nn.Module] = [nn.Flatten()]
    if units.startswith("sign"):
        layers.append(_HardSign())  # binary inputs, as the sampling machine has them
    for before, here in pairwise(sizes[:-1]):
        layers += [nn.Linear(before, here), *_CONVENTIONAL[units](here)]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def _hidden(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)][:-1]


@torch.no_grad()
def rescaled(model: nn.Module, decades: float, seed: int) -> nn.Module:
    """A copy in which what comes into each hidden unit, weights and bias, is multiplied by a factor of its own.

    Args:
        model: of linear layers, the last of which is left alone.
        decades: factors lie evenly in their logarithm between 10 ** -decades and 10 ** decades.
        seed: of the factors.
    """
    changed, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for layer in _hidden(changed):
        factors = 10 ** (decades * (2 * torch.rand(layer.out_features, generator=generator) - 1))
        layer.weight.mul_(factors[:, None].to(layer.weight))
        layer.bias.mul_(factors.to(layer.bias))
    return changed


def _start_rescaled(make: Callable[[], nn.Module], decades: float) -> nn.Module:
    return rescaled(make(), decades, seed=int(torch.randint(2**31, ())))


@dataclass(frozen=True)
class InputShift(Hook):
    """Follow what goes into the units of the last hidden layer: its 15th, 50th and 85th percentiles, unit by unit.

    Kept in ``run.memory["inputs"]``: (epochs + 1, units, 3), from the start on, before the threshold or other activation.

    Args:
        examples: of the training split, that many from its beginning.
    """

    examples: int = 500

    def on_start(self, run: Run) -> None:
        """Before anything is learnt."""
        self._note(run)

    def after_epoch(self, run: Run) -> None:
        """Again after each epoch."""
        self._note(run)

    @torch.no_grad()
    def _note(self, run: Run) -> None:
        found: list[Tensor] = []
        layer = _hidden(run.model)[-1]

        def look(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            found.append(module.argument(given[0]) if isinstance(module, Units) else output)

        handle, mode = layer.register_forward_hook(look), run.model.training
        inputs = run.data.train.inputs
        assert isinstance(inputs, Tensor)
        run.model.eval()(inputs[: self.examples].to(run.device))
        run.model.train(mode)
        handle.remove()
        row = torch.quantile(found[0], found[0].new_tensor([0.15, 0.5, 0.85]), dim=0).T[None]
        run.memory["inputs"] = torch.cat([run.memory["inputs"], row]) if "inputs" in run.memory else row


def shift(percentiles: Tensor) -> list[float]:
    """How far the percentiles have moved from the start, in units of their distance (15th to 85th), averaged over the units.

    The distance is the mean of that at the start and that now, so that neither a narrow start nor a wide end decides.
    """
    moved = (percentiles - percentiles[0]).abs().mean(dim=(1, 2))
    wide = (percentiles[..., 2] - percentiles[..., 0]).mean(dim=1)
    return (moved / ((wide + wide[0]) / 2)).tolist()


def _recipe(lab: Lab, units: str) -> Recipe:
    """The perceptron with these units, "noise" for the paper's; all have the same rate, which was never searched for."""
    data = lab.data(lab.pick(smoke="mnist5k", laptop="mnist5k", full="mnist"))
    data = data.subset(train=300, test=100) if lab.scale == "smoke" else data
    sizes = lab.pick(smoke=(784, 32, 32, 10), laptop=(784, 200, 200, 10), full=(784, 300, 300, 300, 10))
    return Recipe(
        data.normalise(),
        model=partial(nsm_mlp, sizes) if units == "noise" else partial(conventional, sizes, units),
        optimizer=partial(torch.optim.Adam, lr=lab.pick(smoke=1e-3, laptop=1e-3, full=3e-4)),
        schedule=cosine,
        hooks=(InputShift(),),
        epochs=lab.pick(smoke=1, laptop=15, full=100),
        batch_size=100,
        watch=(),
    )


def _accuracy(lab: Lab, trained: Trained, model: nn.Module | None = None, passes: int = _PASSES) -> Score:
    """Test accuracy of the mean over passes; of a changed network, if one is given, with other noise."""
    test, net = trained.recipe.data.test, trained.model if model is None else model
    noisy = any(isinstance(module, Units) for module in net.modules())
    assert isinstance(test.inputs, Tensor)
    mean = mc_predict(net, test.inputs.to(lab.device), passes if noisy else 1, seed=2 * lab.seed + (model is not None)).mean
    return Score((mean.argmax(dim=1).cpu() == test.labels).double().mean().item(), trained.cost)


_SCALED_DOWN = (
    "4,000 digits instead of 60,000, two hidden layers of 200 units instead of three of 300, 15 epochs of Adam with a rate that "
    "falls from 1e-3 along a cosine instead of 400 with one that is halved."
)
_FEWER = " The mean of 30 passes instead of 100."


@claim(
    "Multiply what comes into each hidden unit by a factor of its own between 0.01 and 100: a trained sampling machine keeps its "
    "accuracy within a point, a sigmoid network loses more than 20 points.",
    expect=(Close("noise, rescaled", to="noise", within=0.01), Lower("sigmoid, rescaled", than="sigmoid", by=0.2)),
    scaled_down=_SCALED_DOWN + _FEWER + " All thresholds have this of the sign, as the arm without noise shows.",
    unit="test accuracy",
)
def scale_of_a_unit_does_not_matter(lab: Lab) -> Measured:
    arms = {}
    for units in ("noise", "sigmoid", "dropout", "sign"):
        trained = lab.train(_recipe(lab, units))
        arms[units] = _accuracy(lab, trained)
        arms[f"{units}, rescaled"] = _accuracy(lab, trained, rescaled(trained.model, decades=2, seed=lab.seed))
    return arms


@claim(
    "The same of learning: started from such units a sampling machine ends no more than a point below where it ends from the "
    "usual start, and a tanh network more than a point.",
    expect=(
        Higher("noise, rescaled start", than="noise", by=-0.01),
        Lower("tanh, rescaled start", than="tanh", by=0.01),
    ),
    scaled_down=_SCALED_DOWN + _FEWER,
    unit="test accuracy",
)
def scale_of_the_start_does_not_matter(lab: Lab) -> Measured:
    arms = {}
    for units in ("noise", "tanh"):
        plain = _recipe(lab, units)
        arms[units] = _accuracy(lab, lab.train(plain))
        disturbed = plain.replace(model=partial(_start_rescaled, plain.model, 2.0))
        arms[f"{units}, rescaled start"] = _accuracy(lab, lab.train(disturbed))
    return arms


@claim(
    "While it learns, what goes into the units of the last hidden layer moves less in a sampling machine than in a sigmoid "
    "network.",
    expect=Lower("noise", than="sigmoid"),
    scaled_down=_SCALED_DOWN,
    unit="distance of three percentiles of a unit's input from the start, in units of their spread, at the end",
)
def inputs_of_units_keep_their_distribution(lab: Lab) -> Measured:
    arms = {}
    for units in ("noise", "sigmoid", "tanh"):
        trained = lab.train(_recipe(lab, units))
        moved = shift(trained.memory["inputs"])
        arms[units] = Curve(moved, list(range(len(moved))), cost=trained.cost, y_name="distance from the start, in spreads")
    return arms


@claim(
    "The mean of 100 passes of a sampling machine classifies test digits no more than a point worse than a tanh network of the "
    "same size that sees grey pixels, and better than a network of thresholds without noise.",
    expect=(Higher("noise", than="tanh", by=-0.01), Higher("noise", than="sign")),
    scaled_down=_SCALED_DOWN,
    unit="test accuracy",
)
def matches_conventional_units(lab: Lab) -> Measured:
    trained = lab.train(_recipe(lab, "noise"))
    counts = lab.pick(smoke=(1, 3), laptop=(1, 3, 10, 30, 100), full=(1, 3, 10, 30, 100))
    accuracies = [_accuracy(lab, trained, passes=count) for count in counts]
    arms: dict[str, float | Curve] = {
        "noise": Curve(accuracies, counts, cost=trained.cost, x_name="passes", y_name="test accuracy")
    }
    for units in ("tanh", "sign", "sign, batch norm"):
        arms[units] = _accuracy(lab, lab.train(_recipe(lab, units)))
    return arms


_ANGLES = (30, 60, 90, 120, 150, 180)


def _asked(lab: Lab, trained: Trained, images: Tensor) -> Sampled:
    net = copy.deepcopy(trained.model)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.train()  # Monte Carlo dropout
    noisy = any(isinstance(module, (Units, nn.Dropout)) for module in net.modules())
    return mc_predict(net, images.to(lab.device), _PASSES if noisy else 1, seed=lab.seed)


def _area(at_home: Tensor, strange: Tensor) -> float:
    kind = torch.cat([torch.zeros(len(at_home)), torch.ones(len(strange))])
    return float(roc_auc_score(kind.numpy(), torch.cat([at_home, strange]).cpu().numpy()))


@claim(
    "How much the passes of a sampling machine contradict one another tells turned digits, and clothes, from upright digits "
    "better than the entropy of a tanh network.",
    expect=(
        Higher("turned: spread of noise", than="turned: entropy of tanh"),
        Higher("clothes: spread of noise", than="clothes: entropy of tanh"),
    ),
    scaled_down=_SCALED_DOWN + _FEWER + " 500 of each kind.",
    unit="area under the ROC curve; of turned digits the mean over 30 to 180 degrees",
    needs=("fashion-mnist",),
)
def spread_tells_what_is_strange(lab: Lab) -> Measured:
    runs = {units: lab.train(_recipe(lab, units)) for units in ("noise", "tanh", "dropout")}
    count, angles = lab.pick(smoke=50, laptop=500, full=10_000), lab.pick(smoke=(60, 180), laptop=_ANGLES, full=_ANGLES)
    digits = lab.data(lab.pick(smoke="mnist5k", laptop="mnist5k", full="mnist"))
    upright, clothes = digits.test.inputs[:count], lab.data("fashion-mnist").test.inputs[:count]
    assert isinstance(digits.train.inputs, Tensor)
    assert isinstance(upright, Tensor)
    assert isinstance(clothes, Tensor)
    turned = [rotate(upright, angle, lab.generator(angle)) for angle in angles]
    mean, std = (one.float() for one in channel_scale(digits.train.inputs))  # what the networks were trained with
    arms: dict[str, float | Curve] = {}
    for units, trained in runs.items():
        said = [_asked(lab, trained, (images - mean) / std) for images in (upright, clothes, *turned)]
        doubts = {f"entropy of {units}": [entropy(one.mean) for one in said]}
        if units != "tanh":
            doubts[f"spread of {units}"] = [one.spread for one in said]
        for name, (home, odd, *rest) in doubts.items():
            areas = [_area(home, one) for one in rest]
            average = sum(areas) / len(areas)
            arms[f"turned: {name}"] = Curve(areas, angles, average, trained.cost, "degrees", "area under the ROC curve")
            arms[f"clothes: {name}"] = Score(_area(home, odd), trained.cost)
    return arms
