"""Sampling machines against noise drawn by hand, against weight normalisation, and their claims at smoke scale."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import ConvNet, mlp
from assay.papers.architectures.neural_sampling_machine import (
    InputShift,
    MonteCarlo,
    conventional,
    entropy,
    inputs_of_units_keep_their_distribution,
    matches_conventional_units,
    mc_predict,
    neural_sampling_machine,
    nsm_lenet,
    nsm_mlp,
    paper_training,
    rescaled,
    scale_of_a_unit_does_not_matter,
    scale_of_the_start_does_not_matter,
    shift,
    small,
    spread_tells_what_is_strange,
    with_sampling_units,
)
from assay.papers.architectures.neural_sampling_machine.layers import (
    NSMConv2d,
    NSMLinear,
    Units,
    repeatable_uniform,
    sign,
)
from assay.papers.architectures.resnet import cifar_resnet
from assay.papers.architectures.wide_resnet import WideResNet
from assay.papers.robust.very_large_dropout import dropping
from assay.recipe import Recipe
from assay.train.loop import fit

DRAWS = 100_000


def layer(noise: str, real_inputs: bool = False, per_synapse: bool = False, width: int = 60) -> tuple[NSMLinear, Tensor]:
    """Four units with gains and biases of their own, and one input."""
    torch.manual_seed(0)
    made = NSMLinear(width, 4, noise=noise, real_inputs=real_inputs, per_synapse=per_synapse, p=0.3, sigma=0.7)
    with torch.no_grad():
        made.gain.copy_(torch.tensor([0.4, 1.0, -0.7, 1.5]))
        made.bias.copy_(torch.tensor([0.5, -0.3, 0.0, 0.1]))
    inputs = torch.randn(1, width)
    return made, inputs if real_inputs else sign(inputs)


def by_hand(made: NSMLinear, z: Tensor) -> Tensor:
    """How often units fire, with noise for each synapse, from the model's definition alone: u = sum (xi + a) w z + b."""
    variance, mean = (made.p * (1 - made.p), made.p) if made.noise == "bernoulli" else (0.7**2, 1.0)
    a = made.gain * math.sqrt(2 * variance) - mean
    fired = torch.zeros(4)
    for _ in range(10):
        xi = torch.empty(DRAWS // 10, *made.weight.shape)
        xi = xi.bernoulli_(made.p) if made.noise == "bernoulli" else xi.normal_(1, 0.7)
        u = torch.einsum("noi,oi->no", xi + a[:, None], made.weight * z) + made.bias
        fired += (u >= 0).float().sum(dim=0)
    return fired / DRAWS


@torch.no_grad()
@pytest.mark.parametrize("real_inputs", [False, True])
@pytest.mark.parametrize(("noise", "within"), [("gaussian", 3 * 0.5 / DRAWS**0.5), ("bernoulli", 0.01)])
def test_the_law_is_how_often_units_fire(noise: str, within: float, real_inputs: bool) -> None:
    made, z = layer(noise, real_inputs)
    law = made.prob(z)[0]
    assert law.min() < 0.4
    assert law.max() > 0.6
    torch.testing.assert_close(by_hand(made, z), law, atol=within, rtol=0)
    for per_synapse in (False, True):  # what a layer itself does, with both kinds of noise
        made.per_synapse = per_synapse
        states = made(z.expand(DRAWS, -1))
        assert set(states.unique().tolist()) == {-1.0, 1.0}
        torch.testing.assert_close((states > 0).float().mean(dim=0), law, atol=within, rtol=0)


@torch.no_grad()
def test_units_share_the_noise_of_an_input_unless_every_synapse_has_its_own() -> None:
    made, z = layer("gaussian")
    made.weight.copy_(made.weight[:1].expand(4, -1))
    made.gain.fill_(0.0)
    made.bias.zero_()
    shared = made(z.expand(2000, -1))
    assert (shared == shared[:, :1]).all()
    made.per_synapse = True
    apart = made(z.expand(2000, -1))
    assert abs(float((apart[:, 0] * apart[:, 1]).mean())) < 0.1


def test_a_filter_is_a_unit_at_every_place_also_at_the_border() -> None:
    torch.manual_seed(0)
    net = NSMConv2d(2, 3, 3, stride=2, padding=1, p=0.3)
    image = torch.randn(1, 2, 7, 7)
    patches = F.unfold(F.pad(sign(image), (1, 1, 1, 1), value=-1), 3, stride=2).transpose(1, 2)  # (1, places, 18)
    same = NSMLinear(18, 3, p=0.3)
    with torch.no_grad():
        same.weight.copy_(net.weight.flatten(1))
        same.bias.copy_(net.bias)
        torch.testing.assert_close(net.prob(image).flatten(2).transpose(1, 2), same.prob(patches))
        often = torch.stack([net(image) for _ in range(3000)]).gt(0).float().mean(dim=0)
    torch.testing.assert_close(often, net.prob(image).detach(), atol=0.08, rtol=0)  # 18 inputs are few for a limit


@pytest.mark.parametrize("real_inputs", [False, True])
def test_scale_cancels_and_gradients_are_orthogonal_to_what_comes_in(real_inputs: bool) -> None:
    made, _ = layer("bernoulli", real_inputs)
    made.double()
    z = torch.randn(5, 60, dtype=torch.float64)
    before = made.prob(z)
    (slope, bias_slope) = torch.autograd.grad(before[:, 1].sum() * 3 - before[:, 0].sum(), [made.weight, made.bias])
    radial = (slope * made.weight).sum(dim=1) + bias_slope * made.bias
    assert slope.norm() > 0.1
    assert radial.abs().max() < 1e-10
    with torch.no_grad():
        made.weight.mul_(1e-3)
        made.bias.mul_(1e-3)
    torch.testing.assert_close(made.prob(z), before, atol=1e-9, rtol=0)
    (after,) = torch.autograd.grad(made.prob(z)[:, 1].sum() * 3 - made.prob(z)[:, 0].sum(), made.weight)
    torch.testing.assert_close(after, slope * 1e3, atol=1e-6, rtol=1e-9)  # the step in direction grows by 1 / ||w||


def test_the_law_is_weight_normalisation_and_an_error_function() -> None:
    made, z = layer("gaussian")
    normalised = weight_norm(nn.Linear(60, 4, bias=False), dim=0)
    with torch.no_grad():
        normalised.parametrizations.weight.original0.copy_(made.gain[:, None])
        normalised.parametrizations.weight.original1.copy_(made.weight)
        made.bias.zero_()
    ours, theirs = made.prob(z), 0.5 * (1 + torch.erf(normalised(z)))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours.square().sum(), [made.weight, made.gain]),
        tuple(
            one.view_as(other)
            for one, other in zip(
                torch.autograd.grad(
                    theirs.square().sum(),
                    [normalised.parametrizations.weight.original1, normalised.parametrizations.weight.original0],
                ),
                [made.weight, made.gain],
                strict=True,
            )
        ),
    )


def test_backwards_a_layer_is_its_expected_state() -> None:
    made, z = layer("bernoulli")
    z.requires_grad_()
    direction = torch.randn(1, 4)
    ours = torch.autograd.grad((made(z) * direction).sum(), [z, *made.parameters()])
    expected = torch.autograd.grad(((2 * made.prob(z) - 1) * direction).sum(), [z, *made.parameters()])
    torch.testing.assert_close(ours, expected)


def test_repeatable_numbers_are_even_and_have_nothing_in_common() -> None:
    rows = torch.cat([repeatable_uniform((4000,), stream, draw) for stream in range(3) for draw in range(20)])
    assert 0 < rows.min() < 1e-4
    assert 1 - 1e-4 < rows.max() < 1
    counts = torch.histc(rows, 50, 0, 1)
    assert ((counts - counts.mean()).square() / counts.mean()).sum() < 86  # chi-squared with 49 degrees: 0.1 %
    related = torch.corrcoef(rows) - torch.eye(len(rows))
    assert related.abs().max() < 5 / 4000**0.5
    assert torch.equal(repeatable_uniform((4000,), 1, 3)[0], rows[23])


def test_an_average_over_passes_is_repeatable_and_of_each_example_alone() -> None:
    torch.manual_seed(0)
    model = MonteCarlo(nsm_mlp((784, 40, 30, 10)), passes=200).eval()
    images = torch.randn(6, 1, 28, 28)
    with torch.no_grad():
        state = torch.get_rng_state()
        together = model(images)
        assert torch.equal(torch.get_rng_state(), state)
        torch.testing.assert_close(model(images[2:3]), together[2:3])
        assert not torch.equal(model.net(images), model.net(images))  # the network itself never says the same twice
    torch.testing.assert_close(together.exp().sum(dim=1), torch.ones(6))
    fresh = mc_predict(model, images, passes=2000, seed=1)
    torch.testing.assert_close(together.exp(), fresh.mean, atol=0.03, rtol=0)
    model.train()
    assert not torch.equal(model(images), model(images))


def test_what_many_passes_say_by_hand() -> None:
    class Two(nn.Module):
        """Sure of class 0 and of class 1 by turns for the first example, undecided for the second."""

        turn = 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.turn = 1 - self.turn
            return torch.tensor([[60.0 * self.turn, 60.0 * (1 - self.turn)], [0.0, 0.0]])

    said = mc_predict(Two(), torch.zeros(2, 1), passes=10)
    torch.testing.assert_close(said.mean, torch.full((2, 2), 0.5))
    torch.testing.assert_close(said.std, torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
    torch.testing.assert_close(said.spread, torch.tensor([math.log(2), 0.0]))
    torch.testing.assert_close(entropy(said.mean), torch.full((2,), math.log(2)))
    net = nsm_mlp((12, 20, 3))
    inputs = torch.randn(4, 12)
    state = torch.get_rng_state()
    torch.testing.assert_close(mc_predict(net, inputs, 5, seed=3), mc_predict(net, inputs, 5, seed=3))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_networks_of_the_paper() -> None:
    """784-300-300-300-10 has weights, biases and a gain for each hidden unit; the convolutional one 32, 64 and 512."""
    assert sum(p.numel() for p in nsm_mlp().parameters()) == 784 * 300 + 2 * 300 * 300 + 3 * 600 + 300 * 10 + 10
    net = nsm_lenet()
    assert sum(p.numel() for p in net.parameters()) == 25 * 32 + 64 + 32 * 25 * 64 + 128 + 1024 * 512 + 1024 + 5130
    assert [module.p for module in net.modules() if isinstance(module, Units)] == [0.25, 0.25, 0.5]
    assert net(torch.randn(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("make", [partial(nsm_mlp, (784, 20, 20, 10)), partial(nsm_lenet, widths=(4, 6, 20))])
def test_exports_and_compiles(make: partial[nn.Module]) -> None:
    torch.manual_seed(0)
    model = MonteCarlo(make(), passes=3).eval()
    images = torch.randn(5, 1, 28, 28)
    with torch.no_grad():
        said = model(images)
        batch = {0: torch.export.Dim("batch", min=2, max=64)}
        program = torch.export.export(model, (images[:3],), dynamic_shapes=(batch,)).module()
        torch.testing.assert_close(program(images), said)
        whole = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(whole(images), said)
        half = model.to(torch.bfloat16)(images.bfloat16())
        assert half.dtype == torch.bfloat16


def pictures(shape: tuple[int, ...] = (1, 28, 28), classes: int = 3) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % classes
    inputs = torch.randn(240, *shape, generator=generator)
    inputs[range(240), 0, labels * 4 + 2] += 3
    parts = [slice(0, 160), slice(160, 160), slice(160, 240)]
    return Dataset("lines", "classification", *(Split(inputs[part], labels[part]) for part in parts), ("a", "b", "c"))


def test_any_network_of_modules_can_have_such_units() -> None:
    """Activations, normalisation and dropout go, weights stay; what takes real numbers is the first layer alone."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Linear(8, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 9), nn.Tanh(), nn.Linear(9, 3)
    )
    weights = {name: value.clone() for name, value in plain.state_dict().items() if name[0] in "046"}
    net = with_sampling_units(plain)
    assert [type(module) for module in net] == [NSMLinear, *[nn.Identity] * 3, NSMLinear, nn.Identity, nn.Linear]
    assert [module.real_inputs for module in net.modules() if isinstance(module, Units)] == [True, False]
    assert all(torch.equal(net.state_dict()[name], value) for name, value in weights.items())
    assert set(net[:-1](torch.randn(50, 8)).detach().unique().tolist()) == {-1.0, 1.0}
    residual = with_sampling_units(cifar_resnet(8, "B", width=4, num_classes=3, in_channels=1))
    assert sum(isinstance(module, NSMConv2d) for module in residual.modules()) == 9
    assert not any(isinstance(module, nn.ReLU | nn.BatchNorm2d) for module in residual.modules())
    with pytest.raises(AssayError, match="no hidden linear layer"):
        with_sampling_units(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


def test_one_activation_in_several_places_goes_from_all_of_them() -> None:
    relu = nn.ReLU()
    net = with_sampling_units(nn.Sequential(nn.Linear(8, 20), relu, nn.Linear(20, 9), relu, nn.Linear(9, 3)))
    assert [type(module) for module in net[1::2]] == [nn.Identity] * 2


def test_a_border_that_repeats_the_image_still_does() -> None:
    torch.manual_seed(0)
    first, second = (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular") for _ in range(2))
    net = with_sampling_units(nn.Sequential(first, nn.ReLU(), second, nn.Flatten(), nn.Linear(36, 2)))
    image = torch.randn(1, 1, 6, 6)
    for layer in (net[0], net[2]):  # real numbers, then states
        moved = layer.prob(image.roll((2, 3), dims=(2, 3)))
        torch.testing.assert_close(moved, layer.prob(image).roll((2, 3), dims=(2, 3)))


class Hidden(nn.Module):
    """Decides by a number whether to rectify: no graph can be made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(784, 9), nn.Linear(9, 9), nn.Linear(9, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images.flatten(1))
        hidden = self.second(hidden.relu() if float(hidden.max()) > 0 else hidden)
        return self.last(hidden)


def test_activations_that_are_functions_go_too_and_the_rest_stays() -> None:
    torch.manual_seed(0)
    plain = WideResNet(10, 1, 3, 1, dropout=0.5, base=4)
    names = set(plain.state_dict())
    net = with_sampling_units(plain)
    assert not any(
        "relu" in str(node.target) or "dropout" in str(node.target) for node in net.graph.nodes if node.op != "call_module"
    )
    weights = {name for name in net.state_dict() if not name.endswith("gain")}
    assert weights == {name for name in names if ".bn" not in name and not name.startswith("bn")}
    inner: list[Tensor] = []
    last = [module for module in net.modules() if isinstance(module, NSMConv2d)][-1]
    handle = last.register_forward_pre_hook(lambda _, given: inner.append(given[0].detach()))
    net(torch.randn(4, 1, 28, 28))
    handle.remove()
    assert set(inner[0].unique().tolist()) == {-2.0, 0.0, 2.0}  # the sum of two states, of which the layer takes the sign
    head = [module for module in with_sampling_units(dropping(mlp(8, 3), 0.9)).modules() if hasattr(module, "rate")]
    assert len(head) == 1  # another method's dropout before the read-out is none of ours
    same = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    assert with_sampling_units(same) is same


def test_treatment_learns_and_answers_the_same_again(table: Dataset) -> None:
    plain = Recipe(
        table, model=partial(mlp, 8, 2, (32, 16)), optimizer=partial(torch.optim.Adam, lr=1e-2), epochs=15, batch_size=32
    )
    trained = fit(neural_sampling_machine(plain), 0)
    assert trained.accuracy() > 0.85
    assert torch.equal(trained.logits(), trained.logits())
    images = Recipe(pictures(), model=partial(ConvNet, 1, 3, 28, (4, 8), 16), epochs=4, batch_size=20)
    treated = fit(neural_sampling_machine(paper_training(images), noise="gaussian", per_synapse=True, passes=4), 0)
    assert treated.logits().shape == (80, 3)
    wide = images.replace(model=partial(WideResNet, 10, 1, 3, 1, dropout=0.3, base=4), epochs=1)
    assert fit(neural_sampling_machine(wide, passes=2), 0).logits().isfinite().all()  # its ReLUs are functions
    with pytest.raises(AssayError, match="never negative"):
        neural_sampling_machine(images.replace(model=Hidden))
    with pytest.raises(AssayError, match="no hidden linear layer"):
        neural_sampling_machine(plain.replace(model=partial(nn.Linear, 8, 2)))
    with pytest.raises(AssayError, match="passes=0"):
        neural_sampling_machine(plain, passes=0)


def test_treatment_of_a_network_that_takes_numbers_of_words() -> None:
    words = Split(torch.randint(30, (40, 12)), torch.arange(40) % 3)
    data = Dataset("words", "classification", words, words, words, ("a", "b", "c"))
    treated = neural_sampling_machine(Recipe(data, model=_words, epochs=1, batch_size=20), passes=2)
    assert fit(treated, 0).logits().shape == (40, 3)


def _words() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(30, 8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def test_bad_noise_is_refused() -> None:
    with pytest.raises(AssayError, match="'bernoulli' or 'gaussian'"):
        NSMLinear(3, 2, noise="uniform")  # type: ignore[arg-type]
    with pytest.raises(AssayError, match="p between 0 and 1"):
        NSMLinear(3, 2, p=1.0)


def test_rescaling_changes_each_unit_and_not_what_thresholds_say() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(20, 12)
    for units, same in (("sign", True), ("sigmoid", False)):
        net = conventional((12, 30, 20, 4), units).eval()
        changed = rescaled(net, decades=2, seed=1)
        ratio = next(changed.parameters()) / next(net.parameters())
        assert ratio.std(dim=1).max() < 1e-3 * ratio.max()
        assert 0.009 < ratio.min() < 0.05
        assert 20 < ratio.max() < 101
        assert torch.allclose(net(inputs), changed(inputs), atol=1e-5) is same


def test_shift_by_hand(table: Dataset) -> None:
    start = torch.tensor([[-1.0, 0.0, 1.0]])
    moved = torch.stack([start, start + 3, 3 * start])
    assert shift(moved) == pytest.approx([0, 3 / 2, (4 / 3) / 4])
    plain = Recipe(table, model=partial(conventional, (8, 6, 5, 2), "tanh"), hooks=(InputShift(50),), epochs=2)
    trained = fit(plain, 0)
    assert trained.memory["inputs"].shape == (3, 5, 3)
    inputs = table.train.inputs[:50]
    before = torch.quantile(trained.model[:-2](inputs), 0.85, dim=0)
    torch.testing.assert_close(trained.memory["inputs"][-1, :, 2], before)


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert "noise, rescaled" in scale_of_a_unit_does_not_matter(lab)
    assert "tanh, rescaled start" in scale_of_the_start_does_not_matter(lab)
    assert set(inputs_of_units_keep_their_distribution(lab)) == {"noise", "sigmoid", "tanh"}
    assert set(matches_conventional_units(lab)) == {"noise", "tanh", "sign", "sign, batch norm"}
    assert "clothes: spread of dropout" in spread_tells_what_is_strange(lab)
    assert small(10)(torch.randn(2, 1, 28, 28)).shape == (2, 10)
