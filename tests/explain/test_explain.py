"""Axioms, ways of writing a network, and what is refused."""

from __future__ import annotations

from functools import partial

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay import explain
from assay.errors import AssayError

METHODS = {
    "gradient": explain.gradient,
    "input_x_gradient": explain.input_x_gradient,
    "deconvnet": explain.deconvnet,
    "guided_backprop": explain.guided_backprop,
    "deeplift": explain.deeplift,
    "lrp": explain.lrp,
    "gamma": lambda *given: explain.lrp(*given, rule=explain.Gamma()),
    "z-plus": lambda *given: explain.lrp(*given, rule=explain.Z_PLUS),
    "alpha-beta": lambda *given: explain.lrp(*given, rule=explain.AlphaBeta()),
    "composite": lambda *given: explain.lrp(*given, rule=explain.layered),
    "occlusion": lambda *given: explain.occlusion(*given, window=3, stride=2),
    "integrated gradients": lambda *given: explain.integrated_gradients(*given, steps=10),
}
CLOSE = {"rtol": 1e-7, "atol": 1e-10}


def ready(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    model, inputs = networks.ALL[name]()
    return model, inputs, torch.arange(len(inputs)) % 5


def score_of(model: nn.Module, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
    return model(*inputs).gather(1, target[:, None]).squeeze(1)


def score(model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
    return model(inputs).gather(1, target[:, None]).squeeze(1)


class Written(nn.Module):
    """A residual network of functions, written in one of three ways."""

    def __init__(self, way: int) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3)
        self.head = nn.Linear(6, 5)
        self.relu, self.pool = nn.ReLU(inplace=way == 2), nn.MaxPool2d(2)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == 0:
            x = F.relu(self.conv1(x))
            x = F.max_pool2d(x + F.relu(self.conv2(x)), 2)
            return self.head(F.relu(self.conv3(x)).mean(dim=(2, 3)))
        if self.way == 1:
            x = self.conv1(x).clamp(min=0)
            x = torch.max_pool2d(torch.add(x, self.conv2(x).relu()), 2)
            x = F.adaptive_avg_pool2d(torch.relu(F.conv2d(x, self.conv3.weight, self.conv3.bias)), 1)
            return F.linear(x.flatten(1), self.head.weight, self.head.bias)
        x = self.relu(self.conv1(x))  # one module in three places, in place
        y = self.conv2(x)
        y.relu_()
        y = self.pool(x + y)
        return self.head(self.relu(self.conv3(y)).flatten(2).mean(2))


@pytest.mark.parametrize("method", METHODS)
def test_how_it_is_written_does_not_matter(method):
    inputs, target = torch.rand(4, 3, 8, 8).double(), torch.arange(4)
    first, *others = (METHODS[method](Written(way).double(), inputs, target) for way in range(3))
    assert first.abs().max() > 1e-4
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", networks.ALL)
@pytest.mark.parametrize("method", METHODS)
def test_examples_do_not_mix_and_the_network_is_left_as_it_was(method, name):
    if method == "occlusion" and name == "transformer":
        pytest.skip("the same as for the others")
    model, inputs, target = ready(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    model.get_submodule(next(n for n, m in model.named_modules() if isinstance(m, nn.Linear))).eval()
    modes = [part.training for part in model.modules()]
    first = next(model.parameters()).requires_grad_(False)
    whole = METHODS[method](model, inputs, target)
    single = torch.cat([METHODS[method](model, inputs[i : i + 1], target[i : i + 1]) for i in range(len(inputs))])
    assert whole.shape == inputs.shape
    torch.testing.assert_close(single, whole, **CLOSE)
    assert [part.training for part in model.modules()] == modes
    assert not first.requires_grad
    assert all(p.requires_grad for p in list(model.parameters())[1:])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not inputs.requires_grad
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


@pytest.mark.parametrize("name", networks.ALL)
@pytest.mark.parametrize("start", ["zero", "one", "each"])
def test_deeplift_is_complete(name, start):
    model, inputs, target = ready(name)
    baseline = {"zero": torch.zeros_like(inputs), "one": torch.rand_like(inputs[:1]), "each": torch.rand_like(inputs)}[start]
    found = explain.deeplift(model, inputs, target, baseline=baseline)
    gained = score(model, inputs, target) - score(model, baseline.expand_as(inputs), target)
    # Softmax and layer normalisation go by quadrature.
    torch.testing.assert_close(found.flatten(1).sum(1), gained, rtol=0, atol=1e-3 if name == "transformer" else 1e-12)


def test_quadrature_converges():
    model, inputs, target = ready("transformer")
    gained = score(model, inputs, target) - score(model, torch.zeros_like(inputs), target)
    misses = [
        (explain.deeplift(model, inputs, target, points=n).flatten(1).sum(1) - gained).abs().max().item() for n in (2, 8, 32)
    ]
    assert misses[0] > 10 * misses[1] > 100 * misses[2]


NORMS = {
    "layer": lambda: nn.LayerNorm(6),
    "layer, two dimensions": lambda: nn.LayerNorm((4, 6)),
    "group": lambda: nn.GroupNorm(2, 4),
    "instance": lambda: nn.InstanceNorm1d(4, affine=True, eps=1e-3),
    "instance, of the training": lambda: nn.InstanceNorm1d(4, track_running_stats=True, eps=1e-3),
    "root mean square": lambda: nn.RMSNorm(6),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("start", ["zero", "random", "near", "parallel", "the same"])
def test_normalisations_have_their_mean_gradient(norm, start):
    """From zero the whole change happens in the first ten thousandth of the way, which no quadrature sees."""
    torch.manual_seed(0)
    layer = NORMS[norm]()
    for part in layer.parameters():
        nn.init.normal_(part)
    if getattr(layer, "running_var", None) is not None:
        layer.running_var.uniform_(0.5, 2)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 5)).double().eval()
    inputs, target = torch.randn(5, 4, 6).double(), torch.arange(5)
    baseline = {
        "zero": torch.zeros_like(inputs),
        "random": torch.randn_like(inputs),
        "near": inputs + 1e-6 * torch.randn_like(inputs),
        "parallel": 0.3 * inputs,
        "the same": inputs.clone(),
    }[start]
    found = explain.deeplift(model, inputs, target, baseline=baseline)
    gained = score(model, inputs, target) - score(model, baseline, target)
    torch.testing.assert_close(found.flatten(1).sum(1), gained, rtol=0, atol=1e-12)
    if start != "zero":  # where quadrature can, it says the same of each input
        expected = explain.integrated_gradients(model, inputs, target, baseline=baseline, steps=200)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_a_transformer_of_words_is_explained_from_zero():
    """Normalised behind each part, as the first transformers were, and from a reference of zeros, as texts have."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = (
        nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(48, 4)).double().eval()
    )
    inputs, target = torch.randn(5, 6, 8).double(), torch.arange(5) % 4
    found = explain.deeplift(model, inputs, target)
    gained = score(model, inputs, target) - score(model, torch.zeros_like(inputs), target)
    torch.testing.assert_close(found.flatten(1).sum(1), gained, rtol=0, atol=1e-6 * gained.abs().max().item())


class Segments(nn.Module):
    """Sentences in one row, the largest of each, as the word CNN has it."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.first, self.last, self.own = nn.Linear(4, 8), nn.Linear(8, 5), own

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if self.own:
            return self.last(hidden.amax(dim=1))
        lengths = torch.full((len(x),), x.shape[1])
        row = F.embedding(torch.arange(hidden.shape[:2].numel()), hidden.flatten(0, 1))
        row = torch.cat([row, row[:1]]).index_fill(0, torch.tensor([len(row)]), -torch.inf)
        lengths[-1] += 1  # a place that the last segment does not see
        return self.last(torch.segment_reduce(row.contiguous(), "max", lengths=lengths, axis=0))


@pytest.mark.parametrize("method", ["gradient", "deeplift", "lrp"])
def test_largest_of_segments(method):
    inputs, target = torch.randn(5, 3, 4), torch.arange(5)
    expected = METHODS[method](Segments(True), inputs, target)
    torch.testing.assert_close(METHODS[method](Segments(False), inputs, target), expected)


def test_relevance_goes_by_the_statistics_that_a_normalisation_uses():
    """With those of the training, or an epsilon of its own, as many as with the same numbers in a linear layer."""
    torch.manual_seed(0)
    norm = nn.InstanceNorm1d(4, affine=True, track_running_stats=True, eps=0.5).double().eval()
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(24, 5)).double()
    inputs, target = torch.randn(5, 4, 6).double(), torch.arange(5)
    scale = norm.weight / (norm.running_var + 0.5).sqrt()
    shift = norm.bias - norm.running_mean * scale

    class Affine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * scale.detach()[:, None] + shift.detach()[:, None]

    expected = explain.lrp(nn.Sequential(Affine(), *model[1:]), inputs, target)
    torch.testing.assert_close(explain.lrp(model, inputs, target), expected, rtol=1e-5, atol=1e-8)


class Odd(nn.Module):
    """Whatever needs a rule of its own."""

    def __init__(self, what: str) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        mixed = {
            "product": lambda: a * b.sigmoid(),
            "quotient": lambda: a / (1 + b.square()),
            "maximum": lambda: torch.maximum(a, b) - torch.minimum(a.tanh(), b),
            "max": lambda: torch.stack([a, b, x]).max(dim=0).values + torch.stack([a, b], dim=2).amax(-1),
            "amax": lambda: a.view(-1, 2, 2, 2).amax(dim=(1, 3), keepdim=True).expand(-1, 2, 2, 2).reshape(-1, 8),
            "glu": lambda: F.glu(torch.cat([a, b], dim=1), dim=1),
            "power": lambda: a**3 + 2**b + 1 / (3 + b.abs()),
            "series": lambda: F.max_pool1d(a[:, None], 3, stride=1, padding=1)[:, 0] + F.adaptive_max_pool1d(b[:, None], 8)[:, 0],
            "pieces": lambda: torch.cat([F.gelu(part) for part in a.chunk(2, 1)], 1),
            "einsum": lambda: torch.einsum("bi,bj->bj", a, b),
            "gru": lambda: self.gru(torch.stack([a, b], dim=1))[0][:, -1],
        }[self.what]()
        return self.last(mixed)


ODD = ["product", "quotient", "maximum", "max", "amax", "glu", "power", "series", "pieces", "einsum", "gru"]


@pytest.mark.parametrize("what", ODD)
def test_deeplift_is_complete_for_any_function(what):
    model, inputs, target = Odd(what).double(), torch.randn(6, 8).double(), torch.arange(6) % 5
    baseline = torch.randn(6, 8).double()
    found = explain.deeplift(model, inputs, target, baseline=baseline, points=24)
    gained = score(model, inputs, target) - score(model, baseline, target)
    approximate = what in ("quotient", "glu", "gru")
    torch.testing.assert_close(found.sum(1), gained, rtol=0, atol=1e-6 if approximate else 1e-12)


@pytest.mark.parametrize("name", ["cnn", "resnet"])
@pytest.mark.parametrize(
    "rule",
    [
        explain.Epsilon(0.0),
        explain.Gamma(0.5, 0.0),
        explain.AlphaBeta(1, 0, 1e-12),
        explain.AlphaBeta(2, 1, 1e-12),
        partial(
            explain.layered, first=explain.ZBox(0, 1, 0.0), convolution=explain.Gamma(0.25, 0.0), linear=explain.Epsilon(0.0)
        ),
        partial(explain.layered, first=explain.Flat(0.0), convolution=explain.Gamma(0.25, 0.0), linear=explain.Epsilon(0.0)),
    ],
)
def test_relevance_is_conserved_without_biases(name, rule):
    if name == "resnet" and rule == explain.AlphaBeta(2, 1, 1e-12):
        pytest.skip("in a residual branch a unit may have nothing that speaks for it, and its alpha is lost")
    model, inputs, _ = ready(name)
    for part in model.modules():
        for holder, key in ((part, "bias"), (part, "running_mean")):
            if isinstance(getattr(holder, key, None), Tensor):
                nn.init.zeros_(getattr(holder, key))
    target = model(inputs).argmax(dim=1)
    found = explain.lrp(model, inputs, target, rule=rule)
    torch.testing.assert_close(found.flatten(1).sum(1), score(model, inputs, target), rtol=1e-4, atol=1e-7)


def test_lrp_0_is_input_x_gradient_where_a_network_is_piecewise_linear():
    """Without biases and with nothing but ReLUs, maxima and sums (Montavon et al. 2019, 10.2)."""
    for name in ("cnn", "resnet"):
        model, inputs, target = ready(name)
        product = explain.input_x_gradient(model, inputs, target)
        # Biases take their share in the denominators of both.
        torch.testing.assert_close(explain.lrp(model, inputs, target, rule=explain.Epsilon(0.0)), product, rtol=1e-4, atol=1e-7)


def test_batch_normalisation_is_merged_into_the_layer_before():
    torch.manual_seed(0)
    model = networks._settle(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)))
    merged = nn.Sequential(torch.nn.utils.fusion.fuse_conv_bn_eval(model[0], model[1]), *model[2:])
    inputs, target = torch.randn(5, 2, 6, 6).double(), torch.arange(5) % 3
    for rule in (explain.Epsilon(0.1), explain.Gamma(), explain.AlphaBeta(), explain.layered):
        found = explain.lrp(model, inputs, target, rule=rule)
        torch.testing.assert_close(found, explain.lrp(merged, inputs, target, rule=rule), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["gradient", "input_x_gradient", "deeplift", "lrp", "z-plus", "occlusion"])
def test_what_has_no_influence_gets_nothing_and_equals_get_the_same(method):
    class Unmoved(nn.Module):
        """Column 2 has no influence; 0 and 1 are interchangeable."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 3)).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(torch.stack([x[:, 0] + x[:, 1], x[:, 3]], dim=1)) + 0 * x[:, 2:3]

    inputs = torch.rand(6, 4).double()
    inputs[:, 1] = inputs[:, 0]
    call = (lambda *given: explain.occlusion(*given, window=1)) if method == "occlusion" else METHODS[method]
    found = call(Unmoved(), inputs, torch.arange(6) % 3)
    # Occlusion is a difference of outputs, which may be rounded differently in different rows of a batch.
    assert found[:, 2].abs().max() <= (1e-14 if method == "occlusion" else 0)
    torch.testing.assert_close(found[:, 0], found[:, 1], **CLOSE)
    assert found[:, 0].abs().max() > 1e-3


def test_same_function_other_network():
    """The pair of Sundararajan et al. 2017, fig. 7: the gradient is the function's, DeepLIFT sees how it is wired."""

    class Pair(nn.Module):
        def __init__(self, nested: bool) -> None:
            super().__init__()
            self.nested = nested

        def forward(self, x: Tensor) -> Tensor:
            first = F.relu(x[:, :1] - 1) if self.nested else F.relu(x[:, :1]) - 1
            return F.relu(first - F.relu(x[:, 1:]))

    inputs, target = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
    f, g = Pair(False), Pair(True)
    assert f(inputs) == g(inputs) == 1
    torch.testing.assert_close(explain.gradient(f, inputs, target), explain.gradient(g, inputs, target))
    torch.testing.assert_close(explain.deeplift(f, inputs, target), torch.tensor([[1.5, -0.5]]))
    torch.testing.assert_close(explain.deeplift(g, inputs, target), torch.tensor([[2.0, -1.0]]))


def test_a_layer_split_in_two():
    """W = V (V^T W): nothing changes for what follows affine functions, much for what looks at signs of weights."""
    model, inputs, target = ready("mlp")
    turn, _ = torch.linalg.qr(torch.randn(16, 16).double())
    halves = [nn.Linear(12, 16, bias=False), nn.Linear(16, 16)]
    split = nn.Sequential(*halves, *model[1:]).double()
    with torch.no_grad():
        halves[0].weight.copy_(turn.T @ model[0].weight)
        halves[1].weight.copy_(turn)
        halves[1].bias.copy_(model[0].bias)
    torch.testing.assert_close(split(inputs), model(inputs))
    for name in ("gradient", "guided_backprop", "deeplift", "occlusion"):
        torch.testing.assert_close(METHODS[name](split, inputs, target), METHODS[name](model, inputs, target), **CLOSE)
    exact = explain.Epsilon(0.0)
    torch.testing.assert_close(explain.lrp(split, inputs, target, rule=exact), explain.lrp(model, inputs, target, rule=exact))
    assert (METHODS["z-plus"](split, inputs, target) - METHODS["z-plus"](model, inputs, target)).abs().max() > 0.01


def test_several_inputs_and_integers():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.words, self.a, self.b, self.out = nn.Embedding(9, 4), nn.Linear(3, 4), nn.Conv1d(2, 4, 3), nn.Linear(4, 5)

        def forward(self, table: Tensor, series: Tensor, words: Tensor) -> Tensor:
            merged = F.silu(self.a(table)) + self.b(series).relu().mean(-1) + self.words(words).sum(1)
            return self.out(merged.tanh())

    model = Two().double()
    inputs = (torch.randn(4, 3).double(), torch.randn(4, 2, 7).double(), torch.randint(9, (4, 6)))
    target = torch.arange(4)
    for name, method in METHODS.items():
        found = method(model, inputs, target)
        assert isinstance(found, tuple), name
        assert [part.shape for part in found] == [part.shape for part in inputs]
        assert all(part.abs().sum() > 0 for part in found[:2])
        assert torch.equal(found[2], torch.zeros(4, 6).double())
    found = explain.deeplift(model, inputs, target, baseline=(0.0, torch.randn(1, 2, 7).double(), 0.0))
    assert found[1].abs().sum() > 0
    with pytest.raises(AssayError, match="one for each"):
        explain.deeplift(model, inputs, target, baseline=(0.0, 0.0))
    start = (torch.randn(1, 3).double(), 0.3, 0.0)
    found = explain.integrated_gradients(model, inputs, target, baseline=start, steps=400, chunk=7)
    gained = score_of(model, inputs, target) - score_of(
        model, (start[0].expand(4, 3), torch.full_like(inputs[1], 0.3), inputs[2]), target
    )
    torch.testing.assert_close(sum(part.flatten(1).sum(1) for part in found), gained, rtol=0, atol=1e-3)
    with pytest.raises(AssayError, match="one for each"):
        explain.integrated_gradients(model, inputs, target, baseline=(0.0, 0.0))
    with pytest.raises(AssayError, match="no attributions"):
        explain.gradient(nn.Embedding(9, 4), inputs[2], target)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_relevance_goes_through_attention(activation):
    torch.manual_seed(3)
    model = networks.Transformer(activation).double().eval()
    inputs, target = torch.randn(5, 6, 16).double(), torch.arange(5)
    for rule in (explain.Epsilon(), explain.Gamma()):
        found = explain.lrp(model, inputs, target, rule=rule)
        assert found.isfinite().all()
        assert found.abs().max() > 1e-6


@pytest.mark.parametrize("causal", [True, False])
def test_attention_in_its_parts_is_attention(causal):
    from assay.explain.backward import _attention

    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    for mask in (None,) if causal else (None, torch.rand(5, 5) > 0.3, torch.randn(2, 1, 5, 5)):
        given = {"attn_mask": mask, "is_causal": causal, "enable_gqa": True}
        expected = F.scaled_dot_product_attention(query, key, value, **given)
        torch.testing.assert_close(_attention(query, key, value, **given), expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_references_are_run_once_where_they_can():
    class Counting(nn.Module):
        def __init__(self, squeezes: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net, self.squeezes, self.sizes = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), squeezes, []

        def forward(self, x: Tensor) -> Tensor:
            self.sizes.append(len(x))
            hidden = self.net[:2](x)
            return self.net[2]((hidden.unsqueeze(1).squeeze() if self.squeezes else hidden).tanh().view(len(x), -1))

    inputs, target = torch.randn(6, 4), torch.tensor(1)
    plain, squeezing = Counting(False), Counting(True)
    expected = explain.deeplift(plain, inputs, target)
    assert plain.sizes == [1, 6]
    torch.testing.assert_close(explain.deeplift(squeezing, inputs, target), expected)
    assert squeezing.sizes == [1, 6, 6, 6]


def test_what_cannot_be_meant_is_refused():
    model, inputs, target = ready("cnn")
    with pytest.raises(AssayError, match="does not fit"):
        explain.deeplift(model, inputs, target, baseline=torch.zeros(2, 3, 12, 12))
    with pytest.raises(AssayError, match="one class or 6"):
        explain.gradient(model, inputs, target[:2])
    with pytest.raises(AssayError, match="no rule for log_softmax"):
        explain.lrp(nn.Sequential(model, nn.LogSoftmax(1)), inputs, target)
    with pytest.raises(AssayError, match="too few"):
        explain.integrated_gradients(model, inputs, target, steps=0)
    with pytest.raises(AssayError, match="alpha - beta"):
        explain.AlphaBeta(2, 0.5)
    with pytest.raises(AssayError, match="window"):
        explain.occlusion(model, inputs, target, window=(3,))
    with pytest.raises(AssayError, match="no layer"):
        explain.grad_cam(model, inputs, target, layer="conv9")
    with pytest.raises(AssayError, match="give maps"):
        explain.grad_cam(model, inputs, target, layer="9")
    with pytest.raises(AssayError, match="mixes examples"):
        explain.deeplift(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(432, track_running_stats=False)).double(), inputs, target)


class Exported(nn.Module):
    """A program without modules, and without a mode."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.programs = [program.requires_grad_(False)]

    def forward(self, x: Tensor) -> Tensor:
        return self.programs[0](x)


def test_exported_programs_are_explained_too():
    model, inputs, target = ready("cnn")
    batch = torch.export.Dim("batch", min=1, max=64)
    program = Exported(torch.export.export(model, (inputs,), dynamic_shapes=({0: batch},)).module())
    for method in ("guided_backprop", "deeplift", "composite"):
        torch.testing.assert_close(METHODS[method](program, inputs, target), METHODS[method](model, inputs, target), **CLOSE)
