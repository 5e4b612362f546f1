"""Votes of frames: invariants, agreement with scikit-learn, leaks that must not be, and the claims at smoke scale."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import mode
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from torch import nn

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn.audio import AudioCNN
from assay.papers.architectures import frame_vote as paper
from assay.papers.architectures.frame_vote import ClipClassifier, FrameVote, cut_frames, fine_tuning, group_folds, random_window
from assay.papers.labels.elr import elr
from assay.recipe import Recipe
from assay.train.loop import fit


def clips(count: int = 60, seed: int = 0, names: tuple[str, ...] = ("no", "yes")) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames (N, 4), the labels of their clips and the clips' ids; 1 to 9 frames each."""
    random = np.random.RandomState(seed)
    ids = np.repeat([f"clip {number:03d}" for number in range(count)], random.randint(1, 10, size=count))
    labels = random.randint(len(names), size=count)[np.unique(ids, return_inverse=True)[1]]
    return random.normal(size=(len(ids), 4)) + 0.7 * np.eye(len(names), 4)[labels], np.array(names)[labels], ids


def members() -> list[object]:
    return [LogisticRegression(), GaussianNB()]


def test_frames_are_scikit_learns_soft_vote_and_clips_their_mode() -> None:
    frames, labels, ids = clips()
    model = ClipClassifier(members()).fit(frames, labels, ids)
    theirs = VotingClassifier([("lr", LogisticRegression()), ("nb", GaussianNB())], voting="soft").fit(frames, labels)
    assert np.allclose(model.predict_proba(frames), theirs.predict_proba(frames))
    said = (theirs.predict(frames) == "yes").astype(int)
    names, found = model.predict_clips(frames, ids)
    ties = 0
    for name, label in zip(names, found, strict=True):
        own = said[ids == name]
        if 2 * own.sum() == len(own):
            ties += 1
            expected = theirs.predict_proba(frames)[ids == name, 1].mean() > 0.5
        else:
            expected = mode(own).mode
        assert label == ("yes" if expected else "no")
    assert ties
    right = np.array([labels[ids == name][0] for name in names]) == found
    assert model.score_clips(frames, labels, ids) == pytest.approx(right.mean())
    assert right.mean() > model.score(frames, labels)


def test_one_frame_a_clip_is_the_frame_and_the_order_is_of_no_matter() -> None:
    frames, labels, ids = clips(names=("a", "b", "c"))
    model = ClipClassifier(members()).fit(frames, labels, ids)
    assert (model.predict_clips(frames, np.arange(len(frames)))[1] == model.predict(frames)).all()
    order = np.random.RandomState(1).permutation(len(frames))
    for one, other in zip(model.predict_clips(frames, ids), model.predict_clips(frames[order], ids[order]), strict=True):
        assert (one == other).all()


def test_equal_nets_are_one_net_however_they_are_fused() -> None:
    frames, labels, _ = clips()
    alone = ClipClassifier([GaussianNB()]).fit(frames, labels).predict_proba(frames)
    for fuse in ("mean", "max", "logit"):
        twice = ClipClassifier([GaussianNB(), GaussianNB()], fuse=fuse).fit(frames, labels)  # type: ignore[arg-type]
        assert np.allclose(twice.predict_proba(frames), alone)
    found = {
        fuse: ClipClassifier(members(), fuse=fuse).fit(frames, labels).predict_proba(frames) for fuse in ("mean", "max", "logit")
    }
    assert not np.allclose(found["mean"], found["max"])
    assert not np.allclose(found["mean"], found["logit"])


def test_ways_to_vote() -> None:
    frames, labels, ids = clips()
    fitted = {vote: ClipClassifier(members(), vote=vote).fit(frames, labels) for vote in ("majority", "mean", 1, 2, 9)}
    positive = {vote: model.predict_clips(frames, ids)[1] == "yes" for vote, model in fitted.items()}
    said = fitted["mean"].predict(frames) == "yes"
    names = np.unique(ids)
    counts, sizes = (np.array([part[ids == name].sum() for name in names]) for part in (said, np.ones(len(ids), dtype=int)))
    assert (positive[1] == (counts >= 1)).all()
    assert (positive[2] == (counts >= np.minimum(2, sizes))).all()
    assert (positive[9] == (counts == sizes)).all()  # no clip has more than nine
    probs = fitted["mean"].predict_proba(frames)[:, 1]
    assert (positive["mean"] == np.array([probs[ids == name].mean() > 0.5 for name in names])).all()
    assert (positive["mean"] != positive["majority"]).any()


def test_networks_that_are_trained_already_can_be_members() -> None:
    frames, labels, ids = clips()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5))
    before = [parameter.clone() for parameter in net.parameters()]
    model = ClipClassifier([net, RandomForestClassifier(5, random_state=0)]).fit(frames, labels, ids)
    assert all(torch.equal(one, other) for one, other in zip(before, net.parameters(), strict=True))
    assert (model.predict_proba(frames) == model.predict_proba(frames)).all()
    assert clone(model).get_params()["vote"] == "majority"


def test_what_does_not_fit_is_said() -> None:
    frames, labels, ids = clips()
    for arguments, sentence in (
        ({"fuse": "sum"}, "fuse must be"),
        ({"vote": "most"}, "vote must be"),
        ({"vote": 0}, "vote must be"),
    ):
        with pytest.raises(ValueError, match=sentence):
            ClipClassifier(members(), **arguments).fit(frames, labels)
    with pytest.raises(ValueError, match="two classes, and there are 3"):
        ClipClassifier(members(), vote=2).fit(*clips(names=("a", "b", "c")))
    with pytest.raises(ValueError, match="several labels, for example those of clip"):
        ClipClassifier(members()).fit(frames, np.where(np.arange(len(labels)) % 2, "no", "yes"), ids)
    with pytest.raises(NotFittedError):
        ClipClassifier(members()).predict(frames)
    with pytest.raises(ValueError, match="know 3 classes, and fit was given 2"):
        ClipClassifier([nn.Linear(4, 3)]).fit(frames, labels).predict(frames)
    with pytest.raises(AssayError, match="same ones"):
        ClipClassifier([nn.Linear(4, 3), GaussianNB()]).fit(frames, labels).predict(frames)


def test_no_clip_is_on_both_sides_of_a_fold() -> None:
    frames, labels, ids = clips(count=100)
    folds = group_folds(labels, ids, k=5, seed=1)
    assert len(folds) == 5
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(frames)))
    for train, test in folds:
        assert not set(ids[train]) & set(ids[test])
        assert abs((labels[test] == "yes").mean() - (labels == "yes").mean()) < 0.1


def test_a_new_last_layer_learns_faster() -> None:
    model = AudioCNN(16, 10)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    slow, fast = fine_tuning(model, 2, rate=0.01)
    assert model(torch.zeros(2, 16, 9)).shape == (2, 2)
    assert (slow["lr"], fast["lr"]) == (0.01, 0.1)
    assert {id(parameter) for parameter in fast["params"]} == {id(model.head.weight), id(model.head.bias)}
    assert len(slow["params"]) + 2 == len(list(model.parameters()))
    assert all(torch.equal(value, kept[name]) for name, value in model.named_parameters() if "head" not in name)
    torch.optim.SGD([slow, fast], lr=0.01)
    with pytest.raises(AssayError, match="no linear layer inside"):
        fine_tuning(nn.Linear(3, 2), 4, rate=0.01)


# ----------------------------------------------------------------------------------------------- frames of sounds


def spectrograms(lengths: list[int], columns: int = 40) -> torch.Tensor:
    """(N, 3, columns) that stop to change after so many columns; column t holds t."""
    whole = torch.arange(columns).float().expand(len(lengths), 3, columns).clone() + 1
    for row, length in enumerate(lengths):
        whole[row, :, length:] = -80
    return whole


def test_frames_do_not_reach_into_the_silence() -> None:
    whole = spectrograms([40, 17, 5, 15])
    assert paper.sounding(whole).tolist() == [40, 17, 5, 15]
    frames, of = cut_frames(whole, width=8, stride=4)
    assert of.tolist() == [0] * 9 + [1] * 3 + [2] + [3] * 2
    assert (frames[of == 0][:, 0, 0, 0] == torch.arange(1, 34, 4)).all()
    for clip, starts in ((1, [0, 4, 8]), (3, [0, 4])):  # a third one of the last would end one column too late
        assert (frames[of == clip][:, 0, 0] == torch.tensor(starts)[:, None] + torch.arange(1, 9)).all()
    assert (frames[of == 2][0, 0, 0] == torch.tensor([1, 2, 3, 4, 5, -80, -80, -80])).all()
    assert frames.shape[1:] == (1, 3, 8)
    windows = torch.cat([random_window(whole, torch.Generator().manual_seed(seed), 8) for seed in range(60)])
    assert (windows.view(60, 4, 3, 8)[:, [0, 1, 3]] > -80).all()
    assert set(windows.view(60, 4, 3, 8)[:, 3, 0, 0].tolist()) == set(range(1, 9))  # all of the starts that there are


def test_the_treatment_votes_over_what_is_heard() -> None:
    torch.manual_seed(0)
    net = FrameVote(partial(AudioCNN, 3, 4), width=10, windows=7).eval()
    whole = torch.randn(6, 3, 40)
    whole[2, :, 22:] = 0.5
    whole[3, :, 6:] = 0.5
    starts = [[0, 5, 10, 15, 20, 25, 30]] * 6
    starts[2], starts[3] = [0, 2, 4, 6, 8, 10, 12], [0] * 7
    for row in range(6):
        said = net.net(torch.stack([whole[row, :, start : start + 10] for start in starts[row]])).softmax(dim=1)
        expected = (torch.bincount(said.argmax(dim=1), minlength=4) + said.mean(dim=0)) / 8
        assert torch.allclose(net(whole)[row].exp(), expected, atol=1e-5)
    assert net(torch.zeros(1, 3, 40)).isfinite().all()
    assert net.train()(whole[..., :10]).shape == (6, 4)
    exported = torch.export.export(net.eval(), (whole,))
    assert torch.allclose(exported.module()(whole), net(whole), atol=1e-5)


def sounds() -> Recipe:
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(160, 6, 30, generator=generator), torch.arange(160) % 2
    inputs[:, 1] += (2 * labels[:, None] - 1) * 0.8
    parts = [Split(inputs[part], labels[part]) for part in (slice(80), slice(80, 110), slice(110, 160))]
    data = Dataset("sounds", "classification", *parts, ("a", "b"))
    return Recipe(data, partial(AudioCNN, 6, 2), optimizer=partial(torch.optim.Adam, lr=1e-2), epochs=4, batch_size=16)


def test_the_treatment_trains_composes_and_refuses(table: Dataset) -> None:
    plain = sounds()
    trained = fit(paper.frame_vote(plain), seed=0)
    assert trained.accuracy() > 0.8
    both = [fit(recipe, seed=0).logits() for recipe in (elr(paper.frame_vote(plain)), paper.frame_vote(elr(plain)))]
    assert torch.equal(*both)
    assert not torch.equal(both[0], trained.logits())
    with pytest.raises(AssayError, match="sounds and series"):
        paper.frame_vote(plain.replace(data=table))
    with pytest.raises(AssayError, match="between 0 and 1"):
        paper.frame_vote(plain, share=1.5)
    with pytest.raises(AssayError, match="0 windows vote"):
        paper.frame_vote(plain, windows=0)
    with pytest.raises(AssayError, match="votes over windows already"):
        paper.frame_vote(elr(paper.frame_vote(plain)))
    with pytest.raises(AssayError, match="windows of 15 of 30 columns"):
        paper.frame_vote(plain.replace(model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(180, 2))))


# --------------------------------------------------------------------------------------------------------- claims


def test_votes_of_some_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(50).repeat_interleave(torch.randint(7, 12, (50,), generator=generator))
    digits = torch.tensor([6, 2]).repeat(25)
    right = torch.rand(len(ids), generator=generator) < 0.7
    said = torch.where(right, digits[ids] == 6, digits[ids] != 6).long()
    scores = nn.functional.one_hot(said, 2).float()
    one, seven = (paper._vote_of_some(scores, ids, digits, count, 200, generator) for count in (1, 7))
    per_clip = torch.stack([right[ids == clip].double().mean() for clip in range(50)])
    assert one == pytest.approx(per_clip.mean().item(), abs=0.01)  # every clip counts the same
    assert seven > one + 0.1


def test_networks_of_the_claims() -> None:
    for net, parameters in ((paper.mini_alexnet(), 70_514), (paper.mini_googlenet(), 63_978)):
        assert sum(parameter.numel() for parameter in net.parameters()) == parameters
        assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 2)


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert {"A and G", "A: five convolutions", "G: inception", "twice the better one"} <= set(paper.fusion_beats_members(lab))
    voted = paper.vote_beats_frame(lab)
    assert voted["7 frames"].y[0] == voted["one frame"]
    assert "two and four" in paper.hard_negatives_cost(lab)
    found = paper._Clips(lab)
    sizes = [len(part) for part in (found.data.train, found.data.valid, found.data.test)]
    assert sizes[2] == len(found.clips)
    assert min(sizes) > 0
    digits, speakers, _ = paper._recordings(lab.data("spoken-digits"), every=1)
    counts = torch.bincount(digits)
    assert counts[[6, 7]].tolist() == [300, 300]
    assert abs(int(counts[[5, 9]].sum()) - 300) < 15
    assert abs(int(counts[[2, 4]].sum()) - 300) < 15
    assert torch.bincount(speakers).float().std() < 10
