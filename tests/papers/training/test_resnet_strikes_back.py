"""The procedures: the table's numbers, what the treatment makes of which data, that it composes, the claims at smoke scale.

The ingredients are compared with timm's where they are: tests of train.optim, train.mixing, train.rand_augment, nn.drop_path.
"""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import lenet, mlp
from assay.nn.drop_path import with_drop_path
from assay.nn.measure import parameters
from assay.own.methods import treated
from assay.papers.architectures.resnet import cifar_resnet, resnet50
from assay.papers.labels.elr import elr
from assay.papers.labels.ncr import ncr
from assay.papers.training.encouraging_loss import encouraging
from assay.papers.training.neural_augmentation import traditional_augmentation
from assay.papers.training.resnet_strikes_back import (
    INGREDIENTS,
    PROCEDURES,
    binary_cross_entropy_suits_mixtures,
    classic,
    does_not_pay_in_short_trainings,
    every_ingredient_is_worth_it,
    pays_in_long_trainings,
    rate_for,
    resnet_strikes_back,
)
from assay.recipe import Recipe
from assay.train.augment import flip_and_crop, random_resized_crop
from assay.train.hooks import InputHook, Run
from assay.train.loop import Loop, fit
from assay.train.losses import multi_label_loss
from assay.train.mixing import Mixing, RepeatedAugmentation
from assay.train.optim import lamb
from assay.train.rand_augment import rand_augment


def pictures(size: int = 12, channels: int = 3) -> Dataset:
    """Bright on the left or on the right."""
    generator = torch.Generator().manual_seed(0)
    images = 0.3 * torch.rand(96, channels, size, size, generator=generator)
    labels = torch.arange(96) % 3
    for label in range(3):
        images[labels == label, :, label * size // 3 : (label + 1) * size // 3] += 0.6
    split = Split(images, labels)
    return Dataset("bars", "classification", split, split, split, classes=("top", "middle", "bottom"))


def recipe(**changes: object) -> Recipe:
    plain = Recipe(pictures(), model=partial(cifar_resnet, 8, width=4, num_classes=3), epochs=2, batch_size=24)
    return plain.replace(**changes)


def test_the_rate_is_the_papers_at_the_papers_length() -> None:
    for settings in PROCEDURES.values():
        steps = round(settings.epochs * 1_281_167 / 2048)
        assert rate_for(settings, steps) == pytest.approx(settings.rate, rel=1e-3)
        assert rate_for(settings, 4 * steps) == pytest.approx(settings.rate / 2, rel=1e-3)
        assert rate_for(settings, 10) == 0.02
    # A3 is shorter and has a higher rate: the rule says 1.7 times, the paper took 1.6.
    a2, a3 = PROCEDURES["A2"], PROCEDURES["A3"]
    assert rate_for(a2, round(a3.epochs * 1_281_167 / 2048)) / a3.rate == pytest.approx(1.08, abs=0.01)


def test_the_network_of_the_paper() -> None:
    assert parameters(resnet50()) == 25_557_032


def test_everything_for_images() -> None:
    treatment = resnet_strikes_back(recipe())
    copies, mixing = treatment.hooks
    assert isinstance(copies, RepeatedAugmentation)
    assert isinstance(mixing, Mixing)
    assert (copies.copies, mixing.mixup, mixing.cutmix) == (3, 0.1, 1.0)
    crop, strokes = copies.augment.keywords["steps"]
    assert (crop.keywords, strokes.keywords["magnitude"], strokes.keywords["high"]) == ({"pad": 1}, 7, (1.0, 1.0, 1.0))
    assert treatment.model.keywords == {}
    assert treatment.model.args[1] == 0.05
    assert treatment.loss.keywords == {"smoothing": 0.0}
    loop = Loop(treatment, 0, torch.device("cpu"))
    matrices, vectors = loop.optimizer.param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.02, 0.0)
    assert matrices["initial_lr"] == 0.02  # eight steps
    trained = fit(treatment.replace(epochs=20), 0)
    assert trained.accuracy() > 0.9


def mean_over_classes(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return multi_label_loss(logits, labels) / logits.shape[1]


def test_the_sum_over_classes_trains_as_the_papers_mean_does() -> None:
    ours = resnet_strikes_back(recipe())
    papers = ours.replace(loss=mean_over_classes, optimizer=partial(lamb, lr=0.02, weight_decay=0.02))
    first, second = (fit(one.replace(watch=()), 0).model.state_dict() for one in (ours, papers))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-3, atol=1e-4)


def test_the_procedures_differ_as_in_the_table() -> None:
    short = resnet_strikes_back(recipe(), "A3")
    assert [type(hook) for hook in short.hooks] == [Mixing]  # no copies
    assert short.augment is not None
    assert short.model is recipe().model or getattr(short.model, "func", None) is cifar_resnet  # no drop path
    long = resnet_strikes_back(recipe(), "A1")
    assert long.loss.keywords == {"smoothing": 0.1}
    assert long.schedule.keywords == {"warmup": 5 / 600}
    large = resnet_strikes_back(recipe(data=pictures(64)), "A3")
    assert large.augment.keywords["steps"][0] is random_resized_crop
    with pytest.raises(AssayError, match="no procedure 'A4'"):
        resnet_strikes_back(recipe(), "A4")
    with pytest.raises(AssayError, match="no ingredient 'ema'"):
        resnet_strikes_back(recipe(), without=("ema",))


def ingredients(made: Recipe) -> set[str]:
    """Those that a recipe has, by what stands in it."""
    copies = [hook for hook in made.hooks if isinstance(hook, RepeatedAugmentation)]
    steps = (copies[0].augment if copies else made.augment).keywords["steps"]
    assert [step.func for step in steps] in ([flip_and_crop], [flip_and_crop, rand_augment])
    there = {
        "lamb": made.optimizer.func is lamb,
        "bce": getattr(made.loss, "func", None) is multi_label_loss,
        "rand_augment": len(steps) == 2,
        "mixing": any(isinstance(hook, Mixing) for hook in made.hooks),
        "repeats": bool(copies),
        "drop_path": made.model.func is with_drop_path,
    }
    return {name for name, has in there.items() if has}


@pytest.mark.parametrize("name", INGREDIENTS)
def test_every_ingredient_can_be_left_out_and_the_others_stay(name: str) -> None:
    plain = recipe(optimizer=partial(torch.optim.AdamW, lr=1e-3))
    assert ingredients(resnet_strikes_back(plain)) == set(INGREDIENTS)
    less = resnet_strikes_back(plain, without=(name,))
    assert ingredients(less) == set(INGREDIENTS) - {name}
    if name == "lamb":
        assert (less.optimizer, less.schedule) == (plain.optimizer, plain.schedule)
    if name == "bce":  # then the loss is the paper's, and so are the bounds on its gradient
        assert (less.optimizer.keywords["max_grad_norm"], less.optimizer.keywords["eps"]) == (1.0, 1e-6)
    full, less = resnet_strikes_back(recipe()), resnet_strikes_back(recipe(), without=(name,))
    assert fit(full.replace(watch=()), 0).history != fit(less.replace(watch=()), 0).history


def test_an_augmentation_that_is_there_stays() -> None:
    kept = resnet_strikes_back(recipe(augment=noise))
    assert kept.augment is None  # the hook has it
    assert [getattr(step, "func", step) for step in kept.hooks[0].augment.keywords["steps"]] == [noise, rand_augment]
    assert resnet_strikes_back(recipe(augment=noise), "A3").augment.keywords["steps"][0] is noise


def noise(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return images + 0.01 * torch.rand(images.shape, generator=generator)


class Batches(InputHook):
    """Keeps the last batch as the network sees it."""

    def before_forward(self, run: Run) -> None:
        run.memory["batch"] = run.inputs


def test_every_copy_goes_through_the_recipes_own_augmentation_by_itself() -> None:
    made = resnet_strikes_back(recipe(augment=noise), without=("rand_augment", "mixing"))
    trained = fit(made.replace(hooks=(*made.hooks, Batches()), epochs=1, watch=()), 0)
    batch = trained.memory["batch"]
    first, second, third = batch.split(8)
    for one, other in ((first, second), (first, third), (second, third)):
        assert 0 < (one - other).abs().max() <= 0.01  # the same images, but for the noise
        assert (one != other).flatten(1).any(dim=1).all()


def test_composes_with_another_augmentation_in_any_order() -> None:
    for chain in ([traditional_augmentation, resnet_strikes_back], [resnet_strikes_back, traditional_augmentation]):
        made = treated(recipe(), chain)
        inside = repr((made.augment, made.hooks))
        assert "function traditional" in inside
        assert "function rand_augment" in inside


def test_tables_series_and_texts_get_what_suits_them(table: Dataset) -> None:
    plain = Recipe(table, model=partial(mlp, 8, 2, (32,)), epochs=20, batch_size=32)
    treatment = treated(plain, [resnet_strikes_back])
    assert [type(hook) for hook in treatment.hooks] == [Mixing]
    assert treatment.model is plain.model
    assert fit(treatment, 0).accuracy() > 0.9
    words = Split(torch.randint(9, (64, 5)), torch.arange(64) % 2)
    texts = Recipe(
        Dataset("words", "classification", words, words, words, classes=("a", "b")),
        model=partial(torch.nn.EmbeddingBag, 9, 2, mode="mean"),
        epochs=1,
    )
    assert treated(texts, [resnet_strikes_back]).hooks == ()
    series = Split(torch.randn(64, 2, 10), torch.arange(64) % 2)
    waves = Recipe(
        Dataset("waves", "classification", series, series, series, classes=("a", "b")), model=partial(mlp, 20, 2), epochs=1
    )
    assert [type(hook) for hook in treated(waves, [resnet_strikes_back]).hooks] == [Mixing]
    numbers = Split(torch.randn(64, 3), torch.randn(64))
    with pytest.raises(AssayError, match="no classes"):
        resnet_strikes_back(
            Recipe(Dataset("n", "regression", numbers, numbers, numbers), model=partial(mlp, 3, 1), loss=F.mse_loss)
        )


@pytest.mark.parametrize("other", [elr, ncr, encouraging])
def test_composes_with_losses_in_any_order(other: object) -> None:
    first, second = treated(recipe(), [other, resnet_strikes_back]), treated(recipe(), [resnet_strikes_back, other])
    losses = [fit(made.replace(watch=()), 0).history["train_loss"] for made in (first, second, resnet_strikes_back(recipe()))]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert losses[0] != pytest.approx(losses[2], rel=1e-2)


def test_networks_without_branches_have_no_drop_path() -> None:
    plain = recipe(model=partial(lenet, 3, 3, 12))
    assert resnet_strikes_back(plain).model is plain.model


def test_the_classic_procedure() -> None:
    plain = classic(recipe(epochs=9))
    assert (plain.optimizer.keywords["momentum"], plain.optimizer.keywords["weight_decay"]) == (0.9, 1e-4)
    assert (plain.augment.func, plain.augment.keywords) == (flip_and_crop, {"pad": 1})
    assert classic(recipe(data=pictures(64))).augment is random_resized_crop
    assert plain.optimizer.keywords["lr"] == pytest.approx(0.1 * 24 / 256)
    loop = Loop(plain, 0, torch.device("cpu"))
    rates = []
    for _ in range(9 * loop.run.steps_per_epoch):
        rates.append(loop.optimizer.param_groups[0]["lr"])
        loop.optimizer.step()
        loop.scheduler.step()
    third = len(rates) // 3
    first = 0.1 * 24 / 256
    assert rates == pytest.approx([first] * third + [first / 10] * third + [first / 100] * third)
    assert math.isclose(fit(plain.replace(epochs=20), 0).accuracy(), 1.0, abs_tol=0.1)
    assert classic(recipe(), rate=0.3).optimizer.keywords["lr"] == 0.3


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert set(pays_in_long_trainings(lab)) == {"A3, long", "classic, long", "A2, long", "A3", "classic"}
    assert set(does_not_pay_in_short_trainings(lab)) == {"A3, short", "classic, short"}
    assert set(binary_cross_entropy_suits_mixtures(lab)) == {"binary cross-entropy", "cross-entropy"}
    assert set(every_ingredient_is_worth_it(lab)) > {"A3", "without lamb", "without mixing"}
