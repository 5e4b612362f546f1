"""The rule, the partition and intervals by hand, planted effects that must be found, and the claims at smoke scale."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import lenet
from assay.papers.robust.focus import (
    SettingStressTest,
    accuracy_falls_with_uncommonness,
    by_setting,
    common_settings,
    spurious_feature_explains,
    spurious_features,
    weathered,
)
from assay.recipe import Recipe
from assay.train.loop import fit
from assay.view import View


def table(n: int, share: float, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Two attributes whose common value is the class's, in ``share`` of the examples."""
    draw = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    columns = {name: np.where(draw.random(n) < share, labels, 1 - labels) for name in ("sky", "ground")}
    return pd.DataFrame({"sky": columns["sky"], "ground": np.array(["grass", "sand"])[columns["ground"]]}), labels


def test_what_is_uncommon() -> None:
    train = pd.DataFrame({"sky": ["day"] * 19 + ["night"] + ["day"] * 10 + ["night"] * 10})
    labels = np.array([0] * 20 + [1] * 20)
    new = pd.DataFrame({"sky": ["day", "night", "night", "dusk"]})
    found = SettingStressTest(train, labels, 0.06).uncommon(new, np.array([0, 0, 1, 1]))
    assert found[:, 0].tolist() == [False, True, False, True]  # one in twenty; one in two; never seen
    assert (
        not SettingStressTest(train, labels, 0.05).uncommon(new, np.array([0, 0, 1, 1]))[:3].any()
    )  # a share of 0.05 is not below it
    assert not SettingStressTest(train, labels, 0.0).uncommon(new, np.array([0, 0, 1, 1])).any()
    with pytest.raises(ValueError, match="belong together"):
        SettingStressTest(train, labels[:5])


def test_report_by_hand() -> None:
    train, labels = table(400, 0.99)
    test, truth = table(300, 0.5, seed=1)
    right = np.random.default_rng(2).random(300) < 0.7
    report = SettingStressTest(train, labels).evaluate(test, truth, np.where(right, truth, 1 - truth))
    expected = (test["sky"] != truth).astype(int).to_numpy() + (test["ground"] != np.array(["grass", "sand"])[truth])
    assert report.partition["examples"].sum() == 300
    for k in range(3):
        part = right[expected == k]
        n, p, z = len(part), part.mean(), 1.959964
        middle, half = (p + z * z / 2 / n) / (1 + z * z / n), z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + (z / 2 / n) ** 2)
        np.testing.assert_allclose(report.partition.loc[k], [n, p, middle - half, middle + half], rtol=1e-5)
    has = (test["ground"] == "sand").to_numpy()
    row = report.gaps.loc[("ground", "sand")]
    assert row["gap"] == pytest.approx(right[~has].mean() - right[has].mean())
    assert row["examples"] == has.sum()
    assert row["low"] < row["gap"] < row["high"]
    error = np.sqrt(right[has].var() / has.sum() + right[~has].var() / (~has).sum())
    assert (row["high"] - row["low"]) == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_planted_effects_are_found_and_shuffled_ones_are_not() -> None:
    train, labels = table(1000, 0.99)
    test, truth = table(4000, 0.5, seed=1)
    stress, draw = SettingStressTest(train, labels), np.random.default_rng(3)
    uncommon = stress.uncommon(test, truth)
    right = draw.random(4000) < 1 / (1 + np.exp(-(2.0 - 1.5 * uncommon[:, 0])))  # the ground makes no difference
    said = np.where(right, truth, 1 - truth)
    effects = stress.evaluate(test, truth, said).effects
    assert effects["sky"] == pytest.approx(-1.5, abs=0.25)
    assert effects["ground"] == pytest.approx(0.0, abs=0.25)
    line = stress.evaluate(test, truth, said).partition["accuracy"]
    assert line[0] > line[1] > line[2]
    shuffled = test.sample(frac=1, random_state=0).reset_index(drop=True)
    line = stress.evaluate(shuffled, truth, said).partition["accuracy"]
    assert line.max() - line.min() < 0.06
    assert stress.evaluate(test, truth, truth).effects.isna().all()


def test_features_that_move() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    uncommon = torch.rand(400, generator=generator) < 0.3
    features = torch.randn(400, 3, generator=generator)
    features[:, 1] += 3 * labels  # the class, which does not count
    features[:, 2] = 10 * features[:, 2] + 20 * uncommon
    found = spurious_features(features, labels, uncommon)
    assert float(found[2]) == pytest.approx(2.0, abs=0.3)
    assert float(found[:2].max()) < 0.5
    assert spurious_features(features, labels, torch.zeros(400, dtype=torch.bool)).tolist() == [0, 0, 0]


def test_weather_and_night() -> None:
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    weather, night = torch.arange(8) % 4, torch.arange(8) >= 4
    shown = weathered(images, weather, night, torch.Generator().manual_seed(1))
    assert torch.equal(shown[0], images[0])
    torch.testing.assert_close(shown[4], 0.35 * images[4])
    assert float(shown[1].std()) < 0.6 * float(images[1].std())
    for one in (2, 3):
        assert bool((shown[one] >= images[one] - 1e-6).all() | (one == 2))
        assert not torch.equal(shown[one], images[one])
    assert 0 <= float(shown.min()) <= float(shown.max()) <= 1


def test_settings_are_balanced() -> None:
    """Each class's common settings, and all that differ in every attribute: pairs of values come equally often in both."""
    common = torch.stack(common_settings(torch.arange(8)), dim=1)
    every = torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(2))
    uncommon = torch.cat([every[(every != one).all(dim=1)] for one in common])
    assert len(uncommon) == 8 * 3
    for settings in (common, uncommon):
        for pair, cells in {(0, 1): 8, (0, 2): 4, (1, 2): 8}.items():
            counts = settings[:, pair].unique(dim=0, return_counts=True)[1]
            assert counts.tolist() == [len(settings) // cells] * cells


def test_probe_needs_no_attributes() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    images = 0.2 * torch.rand(200, 1, 16, 16, generator=generator) + 0.5 * labels.view(-1, 1, 1, 1)
    data = Dataset(
        "light", "classification", Split(images, labels), Split(images[:0], labels[:0]), Split(images, labels), ("a", "b")
    )
    model = fit(Recipe(data, model=partial(lenet, 1, 2, 16), epochs=3, batch_size=20), 0).model
    odd = torch.cat([images[:20], 0.9 - images[:20]])
    both = torch.cat([labels[:20], labels[:20]])
    view = View(model, odd, both, both, images, labels, "images", ("a", "b"))
    seen = by_setting(view)
    assert seen.each["uncommon light"][20:].float().mean() > 0.9
    assert seen.each["uncommon light"][:20].float().mean() < 0.1
    assert any("uncommon attributes" in name for name in seen.numbers)
    with pytest.raises(AssayError, match="further examples"):
        by_setting(View(model, odd, both, both, images[:0], None, "images", ("a", "b")))


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    try:
        lab.data("cbsd68")
        lab.data("fashion-mnist")
    except AssayError:
        pytest.skip("the photos or clothes are not here")
    arms = accuracy_falls_with_uncommonness(lab)
    assert {"digits", "clothes, independent", "digits: smallest fall in a step", "clothes, independent: P_3"} <= set(arms)
    assert {"digits: features that move", "clothes: random features"} <= set(spurious_feature_explains(lab))
