"""Inverse distances: Shepard's interpolation, attention's softmax, the closed form of an added case, scikit-learn's contract."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, make_moons
from sklearn.utils.estimator_checks import parametrize_with_checks

from assay.lab import Lab
from assay.lab.verdict import judge
from assay.papers.interpretable import idw_attention as paper
from assay.papers.interpretable.idw_attention import IDWClassifier, KeyValue, idw_attention


def shepard(x: np.ndarray, keys: np.ndarray, values: np.ndarray, eps: float, power: float) -> np.ndarray:
    """Interpolation by inverse distances, one point at a time."""
    found = []
    for point in x:
        inverse = np.array([1 / (eps + np.linalg.norm(point - key) ** power) for key in keys])
        found.append((inverse / inverse.sum()) @ values)
    return np.array(found)


@pytest.mark.parametrize("power", [1.0, 2.0, 10.0])
def test_weights_are_shepards(power):
    random = np.random.default_rng(0)
    x, keys, values = random.normal(size=(6, 4)) + 50, random.normal(size=(5, 4)) + 50, random.normal(size=(5, 3))
    tensors = [torch.from_numpy(one) for one in (x, keys, values)]
    np.testing.assert_allclose(idw_attention(*tensors, power=power), shepard(x, keys, values, 1e-3, power), rtol=1e-8)
    net = KeyValue(4, 3, 5, power=power).double()
    with torch.no_grad():
        net.keys.copy_(tensors[1])
        net.values.copy_(tensors[2])
    torch.testing.assert_close(net(tensors[0]), idw_attention(*tensors, power=power))


def test_it_is_softmax_attention_with_minus_log_distances_as_scores():
    query, keys, values = torch.randn(2, 3, 7, 4), torch.randn(2, 3, 9, 4), torch.randn(2, 3, 9, 5)
    scores = -(1e-3 + torch.cdist(query, keys).square()).log()
    torch.testing.assert_close(idw_attention(query, keys, values), scores.softmax(dim=-1) @ values, rtol=1e-4, atol=1e-5)


def test_a_query_on_a_key_gets_that_keys_value():
    keys, values = torch.randn(6, 3), torch.randn(6, 2)
    torch.testing.assert_close(idw_attention(keys, keys, values, eps=1e-9), values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("power", [1.0, 2.0, 10.0])
def test_gradients_are_right_and_finite_on_a_key(power):
    torch.manual_seed(0)
    query, keys, values = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 2), (4, 2), (4, 2)))
    assert torch.autograd.gradcheck(lambda *args: idw_attention(*args, eps=0.1, power=power), (query, keys, values))
    on = keys.detach().clone().requires_grad_()
    idw_attention(on, keys, values, power=power).sum().backward()
    assert bool(on.grad.isfinite().all())


def test_other_scores_are_those_of_the_paper():
    torch.manual_seed(0)
    x = torch.randn(5, 4)
    nets = {method: KeyValue(4, 3, 6, method) for method in ("gaussian", "dot", "relu")}
    for net in nets.values():
        torch.nn.init.normal_(net.values)
    keys, values = nets["gaussian"].keys, nets["gaussian"].values
    torch.testing.assert_close(nets["gaussian"](x), (-torch.cdist(x, keys).square() / 2).softmax(dim=1) @ values)
    keys, values = nets["dot"].keys, nets["dot"].values
    torch.testing.assert_close(nets["dot"](x), (x @ keys.T / 6**0.5).softmax(dim=1) @ values)
    keys, values = nets["relu"].keys, nets["relu"].values
    torch.testing.assert_close(nets["relu"](x), (x @ keys.T).relu() @ values)
    with pytest.raises(ValueError, match="method"):
        KeyValue(4, 3, method="cosine")


@pytest.mark.parametrize(("eps", "power"), [(1e-3, 2.0), (0.5, 2.0), (1e-3, 10.0)])
def test_a_case_brings_its_class_up_to_the_former_maximum(eps, power):
    torch.manual_seed(0)
    net = KeyValue(4, 3, 8, eps=eps, power=power).double()
    torch.nn.init.normal_(net.keys)
    torch.nn.init.normal_(net.values, std=3)
    for x in torch.randn(20, 4, dtype=torch.float64):
        before = net(x[None])[0].detach()
        for label in range(3):
            more = net.with_case(x, label, margin=0.0)
            after = more(x[None])[0].detach()
            assert int(after.argmax()) == label
            if int(before.argmax()) == label:
                assert more is net
                continue
            # with the paper's value, before the margin: z_c' = (1 - w) z_c + w eta, with w the weight of the new key
            total = (1 / (eps + torch.cdist(x[None], net.keys).pow(power))).sum()
            weight = (1 / eps) / (1 / eps + total)
            eta = more.values[-1, label]
            torch.testing.assert_close(after[label], (1 - weight) * before[label] + weight * eta)
            others = torch.arange(3) != label
            torch.testing.assert_close(after[others], (1 - weight) * before[others])
    with pytest.raises(ValueError, match="'dot'"):
        KeyValue(4, 3, method="dot").with_case(torch.zeros(4), 1)


def test_a_case_far_away_is_forgotten():
    torch.manual_seed(0)
    net = KeyValue(2, 2, 8)
    torch.nn.init.normal_(net.keys)
    torch.nn.init.normal_(net.values)
    far = torch.full((2,), 100.0)
    more = net.with_case(far, 1 - int(net(far[None]).argmax()))
    near = torch.randn(50, 2)
    assert (more(near) - net(near)).abs().max() < 0.01


def test_learns_two_moons_and_explains_itself():
    x, y = make_moons(300, noise=0.1, random_state=0)
    model = IDWClassifier(16, random_state=0).fit(x[:200], np.array(["up", "down"])[y[:200]])
    right = np.array(["up", "down"])[y[200:]]
    assert model.score(x[200:], right) > 0.9
    votes = model.explain(x[250])
    assert sum(vote.weight for vote in votes) == pytest.approx(1, abs=1e-5)
    logit = model.network_(torch.tensor(x[250:251], dtype=torch.float32)).max().item()
    assert sum(vote.vote for vote in votes) == pytest.approx(logit, abs=1e-4)
    assert [vote.weight for vote in votes] == sorted((vote.weight for vote in votes), reverse=True)
    wrong = {"up": "down", "down": "up"}[model.predict(x[250:251])[0]]
    before = model.predict(x[200:])
    model.add_case(x[250], wrong)
    assert model.predict(x[250:251])[0] == wrong
    assert (model.predict(x[200:]) != before).mean() < 0.3
    assert len(model.prototypes_) == 17
    with pytest.raises(ValueError, match="none of the classes"):
        model.add_case(x[0], "left")


def test_picture_shows_the_prototypes_that_counted():
    x, y = load_digits(return_X_y=True)
    model = IDWClassifier(10, epochs=1, batch_size=64, random_state=0).fit(x / 16, y)
    root = ElementTree.fromstring(model.picture(x[0] / 16, (8, 8), most=4))
    assert len(root.findall(".//{http://www.w3.org/2000/svg}image")) == 5


@parametrize_with_checks([IDWClassifier(5, learning_rate=0.1, epochs=30, batch_size=100, random_state=0)])
def test_keeps_scikit_learns_contract(estimator, check):
    check(estimator)


def test_claims_measure_what_they_expect(home):
    lab = Lab(seed=0, scale="smoke")
    for claim in (paper.keys_stand_for_a_class, paper.keys_lie_among_the_data, paper.accuracy_near_others, paper.low_impact):
        assert judge(claim.expect, {0: claim(lab)}).seeds == 1
