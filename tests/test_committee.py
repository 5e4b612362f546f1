"""Committees: against scikit-learn, brute force, closed forms and inequalities that always hold."""

import math
from itertools import combinations, permutations, product

import numpy as np
import pytest
import torch
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from assay import committee
from assay.committee import Groups, at_least, average, by_group, disagreement, dispatch, error_by_size, majority, weighted
from assay.errors import AssayError


def drawn(*shape: int, seed: int = 0, sharpness: float = 2.0) -> Tensor:
    """Logits of this shape."""
    return sharpness * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def members() -> Tensor:
    return drawn(5, 200, 4).softmax(dim=-1)


def test_average_is_scikit_learns_soft_vote() -> None:
    random = np.random.RandomState(0)
    labels = random.randint(3, size=300)
    inputs = random.normal(size=(300, 4)) + 0.5 * np.eye(3, 4)[labels]
    models = [
        ("lr", LogisticRegression()),
        ("nb", GaussianNB(var_smoothing=0.5)),
        ("tree", DecisionTreeClassifier(random_state=0)),
    ]
    theirs = VotingClassifier(models, voting="soft").fit(inputs, labels)
    ours = torch.tensor(np.stack([model.predict_proba(inputs) for model in theirs.estimators_]))
    assert np.allclose(average(ours), theirs.predict_proba(inputs), atol=1e-12)
    hard = VotingClassifier(theirs.estimators, voting="hard").fit(inputs, labels).predict(inputs)
    votes = by_group(ours.flatten(0, 1), torch.arange(300).repeat(3))
    settled = votes.votes.amax(dim=1) > 1  # where all three differ, scikit-learn takes the lowest class and we the mean
    assert not settled.all()
    assert (majority(votes)[settled].numpy() == hard[settled.numpy()]).all()
    assert torch.equal(majority(votes)[~settled], average(ours)[~settled].argmax(dim=1))


def test_geometric_mean_is_the_softmax_of_the_mean_logits(members: Tensor) -> None:
    logits = drawn(5, 200, 4)
    assert torch.allclose(average(logits.softmax(dim=-1), "logits"), logits.mean(dim=0).softmax(dim=-1), atol=1e-6)
    sure = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 0.6, 0.4]]])  # each rules out what the other believes: still a distribution
    assert average(sure, "logits").isfinite().all()
    assert average(members, "max").sum(dim=1).sub(1).abs().max() < 1e-6
    assert torch.equal(average(members, "max").argmax(dim=1), members.amax(dim=0).argmax(dim=1))
    assert not torch.equal(average(members, "max").argmax(dim=1), average(members).argmax(dim=1))


def test_one_member_and_equal_members_are_themselves_and_the_order_is_of_no_matter(members: Tensor) -> None:
    for rule in ("probabilities", "logits", "max"):
        for several in (members[:1], members[:1].expand(3, -1, -1)):
            assert torch.allclose(average(several, rule), members[0], atol=1e-6)
        assert torch.allclose(average(members.flip(0), rule), average(members, rule), atol=1e-6)
    assert torch.allclose(weighted(members, torch.full((5,), 0.2)), average(members), atol=1e-6)
    signed = torch.tensor([2.0, -1.0, 0.0, 0.5, 0.0])
    assert torch.allclose(weighted(members, signed), 2 * members[0] - members[1] + 0.5 * members[3], atol=1e-6)


def test_log_loss_of_the_committee_is_at_most_its_members_mean(members: Tensor) -> None:
    labels = torch.randint(4, (200,), generator=torch.Generator().manual_seed(1))
    each = torch.stack([F.nll_loss(one.log(), labels) for one in members])
    assert F.nll_loss(average(members).log(), labels) < each.mean()  # Jensen
    brier = (members - F.one_hot(labels, 4)).square().sum(dim=2).mean(dim=1)
    spread = (members - average(members)).square().sum(dim=2).mean()  # the ambiguity decomposition (Krogh and Vedelsby 1995)
    together = (average(members) - F.one_hot(labels, 4)).square().sum(dim=1).mean()
    assert together.item() == pytest.approx((brier.mean() - spread).item(), abs=1e-6)


def test_disagreement(members: Tensor) -> None:
    found, said = disagreement(members), members.argmax(dim=2)
    assert torch.equal(found, found.T)
    assert found.diagonal().abs().max() == 0
    assert found[1, 3].item() == pytest.approx((said[1] != said[3]).double().mean().item())


@pytest.mark.parametrize("rule", ["probabilities", "logits", "max"])
def test_error_by_size_is_exact_where_subsets_are_few(members: Tensor, rule: committee.Rule) -> None:
    labels = members[0].argmax(dim=1)
    found = error_by_size(members, labels, rule)
    for size in range(1, 6):
        each = [
            (average(members[list(chosen)], rule).argmax(1) != labels).double().mean() for chosen in combinations(range(5), size)
        ]
        assert found[size - 1].item() == pytest.approx(torch.stack(each).mean().item())


def test_error_by_size_over_random_subsets_is_near_the_exact_one() -> None:
    members = drawn(7, 400, 4).softmax(dim=-1)
    labels = (members[0] + members[1]).argmax(dim=1)
    exact, some = error_by_size(members, labels, subsets=35), error_by_size(members, labels, subsets=34)
    assert torch.equal(exact[[0, 1, 4, 5, 6]], some[[0, 1, 4, 5, 6]])
    assert 0 < (exact[2:4] - some[2:4]).abs().max() < 0.05  # of sizes 3 and 4 there are 35 each
    assert torch.equal(some, error_by_size(members, labels, subsets=34))


def test_probabilities_are_computed_in_batches_and_leave_the_models_as_they_were() -> None:
    nets = [nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)) for _ in range(2)]
    nets[0].eval()
    nets[1][2].eval()  # of one part only
    before = [nets[1][1].running_mean.clone(), [part.training for net in nets for part in net.modules()]]
    inputs = drawn(25, 4)
    found = committee.probabilities(nets, inputs, batch_size=10)
    assert found.shape == (2, 25, 3)
    assert not found.requires_grad
    assert torch.equal(nets[1][1].running_mean, before[0])
    assert [part.training for net in nets for part in net.modules()] == before[1]
    assert torch.allclose(found[1], nets[1].eval()(inputs).softmax(dim=1), atol=1e-6)


def test_classifiers_and_networks_of_any_type_are_asked_side_by_side() -> None:
    inputs = drawn(30, 4).double().numpy()
    model = GaussianNB().fit(inputs, np.arange(30) % 3)
    nets = [nn.Linear(4, 3), nn.Linear(4, 3).double(), nn.Flatten()]  # the last has no weights to go by, and a class too many
    found = committee.ask([model, *nets[:2]], inputs)
    assert (found.dtype, found.shape) == (torch.float64, (3, 30, 3))
    assert np.allclose(found[0], model.predict_proba(inputs))
    for said, net, kind in zip(found[1:], nets, (torch.float32, torch.float64), strict=False):
        assert torch.allclose(said, net(torch.as_tensor(inputs, dtype=kind)).softmax(dim=1).double())
    with pytest.raises(AssayError, match=r"\[3, 4\] classes"):
        committee.ask([model, nets[2]], inputs)
    with pytest.raises(AssayError, match="at least one"):
        committee.ask([], inputs)


# ------------------------------------------------------------------------------------------------------------- votes


def test_votes_by_hand() -> None:
    positive = torch.tensor([0.9, 0.4, 0.4, 0.9, 0.2, 0.3, 0.45, 0.2, 0.6])
    clip = torch.tensor([7, 7, 7, 3, 3, 5, 5, 5, 9])
    found = by_group(torch.stack([1 - positive, positive], dim=1), clip)
    assert found.ids.tolist() == [3, 5, 7, 9]
    assert found.sizes.tolist() == [2, 3, 3, 1]
    assert found.votes.tolist() == [[1, 1], [3, 0], [2, 1], [0, 1]]
    assert majority(found).tolist() == [1, 0, 0, 1]  # clip 3 is a tie with a mean of 0.55
    assert found.mean.argmax(dim=1).tolist() == [1, 0, 1, 1]  # the mean score says another thing of clip 7
    assert at_least(found, 1).tolist() == [1, 0, 1, 1]
    assert at_least(found, 2).tolist() == [0, 0, 0, 1]
    assert at_least(found, 2, positive=0).tolist() == [1, 0, 0, 1]


def test_one_row_a_group_is_the_row_and_the_order_is_of_no_matter() -> None:
    scores = drawn(60, 3, seed=5).softmax(dim=1)
    assert torch.equal(majority(by_group(scores, torch.arange(60))), scores.argmax(dim=1))
    groups = torch.randint(12, (60,), generator=torch.Generator().manual_seed(2))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    one, other = by_group(scores, groups), by_group(scores[order], groups[order])
    assert torch.equal(majority(one), majority(other))
    for name in Groups._fields[:3]:
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert (majority(one) != one.mean.argmax(dim=1)).any()  # or the test could not tell a vote from a mean


def test_at_least_falls_back_on_the_others_majority() -> None:
    scores = torch.tensor([[0.6, 0.3, 0.1], [0.3, 0.6, 0.1], [0.2, 0.2, 0.6], [0.5, 0.1, 0.4]])
    found = by_group(scores, torch.zeros(4, dtype=torch.int64))
    assert at_least(found, 2, positive=1).tolist() == [0]
    assert at_least(found, 1, positive=1).tolist() == [1]


# ---------------------------------------------------------------------------------------------------------- dispatch


def gain(probs: Tensor, labels: Tensor, capacity: Tensor, margin: float) -> float:
    """What dispatch maximises."""
    above = (torch.bincount(labels, minlength=len(capacity)) - capacity).clamp_min(0).sum().item()
    if above and margin == math.inf:
        return -math.inf
    return float(probs.double().log().gather(1, labels[:, None]).sum()) - (margin * above if above else 0.0)


@pytest.mark.parametrize("margin", [math.inf, 1.0, 0.2, 0.0])
@pytest.mark.parametrize("capacity", [[2, 2, 2], [1, 4, 0], [3, 0, 2]])
def test_hungarian_is_the_best_of_all_labellings(capacity: list[int], margin: float) -> None:
    room = torch.tensor(capacity)
    for seed in range(4):
        probs = drawn(5, 3, seed=seed).softmax(dim=1)
        best = max(gain(probs, torch.tensor(labels), room, margin) for labels in product(range(3), repeat=5))
        ours = dispatch(probs, room, margin=margin)
        greedy = dispatch(probs, room, method="greedy", margin=margin)
        assert gain(probs, ours, room, margin) == pytest.approx(best, abs=1e-9)
        assert -math.inf < gain(probs, greedy, room, margin) <= best + 1e-9
        if margin == 0:
            assert torch.equal(ours, probs.argmax(dim=1))
            assert torch.equal(greedy, probs.argmax(dim=1))


@pytest.mark.parametrize("method", ["hungarian", "greedy"])
def test_dispatch_of_a_full_case_gives_every_class_its_capacity(method: str) -> None:
    probs = drawn(20, 14, 7).softmax(dim=2)
    labels = dispatch(probs, 2, method)  # type: ignore[arg-type]
    counts = F.one_hot(labels, 7).sum(dim=1)
    assert (counts == 2).all()
    alone = torch.stack([dispatch(case, 2, method) for case in probs])  # type: ignore[arg-type]
    assert torch.equal(labels, alone)
    order = torch.randperm(14, generator=torch.Generator().manual_seed(4))
    assert torch.equal(dispatch(probs[:, order], 2, method), labels[:, order])  # type: ignore[arg-type]
    assert torch.equal(dispatch(probs, 14, method), probs.argmax(dim=2))  # type: ignore[arg-type]


def test_greedy_by_hand() -> None:
    probs = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.8, 0.2]])  # the second and third take class 0, the first must go
    assert dispatch(probs, torch.tensor([2, 1]), "greedy").tolist() == [1, 0, 0]
    assert dispatch(probs, torch.tensor([1, 2]), "greedy").tolist() == [1, 0, 1]
    assert dispatch(probs, torch.tensor([1, 2]), "greedy", margin=math.log(0.8 / 0.2) - 0.01).tolist() == [1, 0, 0]
    shortsighted = torch.tensor([[0.5, 0.4, 0.1], [0.49, 0.01, 0.5], [0.02, 0.0, 0.98]])
    best, greedy = dispatch(shortsighted, 1), dispatch(shortsighted, 1, "greedy")
    assert best.tolist() == [1, 0, 2]
    assert greedy.tolist() in [list(p) for p in permutations(range(3))]
    assert greedy.tolist() != best.tolist()


def test_classes_that_are_ruled_out_can_still_be_dispatched() -> None:
    probs = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    for method in ("hungarian", "greedy"):
        assert dispatch(probs, 1, method).sort().values.tolist() == [0, 1]  # type: ignore[arg-type]


def test_what_cannot_be_is_said() -> None:
    probs = drawn(4, 3).softmax(dim=1)
    with pytest.raises(AssayError, match="do not fit into 3 places"):
        dispatch(probs, 1)
    dispatch(probs, 1, margin=5.0)
    for capacity in (-1, torch.tensor([2, 2])):
        with pytest.raises(AssayError, match="capacity of 3 classes"):
            dispatch(probs, capacity)
    with pytest.raises(AssayError, match="margin"):
        dispatch(probs, 2, margin=-1.0)
    with pytest.raises(AssayError, match="not numbers"):
        dispatch(torch.where(probs > probs.median(), torch.nan, probs), 4)
    with pytest.raises(AssayError, match="hungarian or greedy"):
        dispatch(probs, 2, method="best")  # type: ignore[arg-type]
    with pytest.raises(AssayError, match="members, examples, classes"):
        average(probs)
    with pytest.raises(AssayError, match="choose probabilities"):
        average(probs[None], "median")  # type: ignore[arg-type]
    with pytest.raises(AssayError, match="give each member one"):
        weighted(probs[None], torch.ones(2))
    with pytest.raises(AssayError, match="labels"):
        error_by_size(probs[None], torch.zeros(3, dtype=torch.int64))
    with pytest.raises(AssayError, match="do not match"):
        by_group(probs, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(AssayError, match="at least 1"):
        at_least(by_group(probs, torch.zeros(4, dtype=torch.int64)), 0)
    with pytest.raises(AssayError, match="0 models"):
        committee.probabilities([], probs)


def test_members_must_know_the_same_classes() -> None:
    with pytest.raises(AssayError, match=r"\(2, 3\), \(2, 5\).*same classes"):
        committee.probabilities([nn.Linear(4, 3), nn.Linear(4, 5)], torch.rand(2, 4))
