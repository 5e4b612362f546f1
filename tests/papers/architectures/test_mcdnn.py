"""Multi-column networks: preprocessings by their definitions, columns that learn as if alone, Jensen's inequality, claims."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.committee import average
from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import lenet, mlp
from assay.nn.measure import macs, parameters
from assay.papers.architectures import mcdnn as paper
from assay.papers.architectures.mcdnn import (
    Adjust,
    ColumnsLoss,
    Contrast,
    Equalize,
    LocalEqualize,
    MultiColumn,
    WidthNormalize,
    column,
    multi_column,
)
from assay.papers.labels.elr import elr
from assay.recipe import Corrected, Recipe, per_example
from assay.train.augment import deform
from assay.train.loop import fit


def pictures(count: int = 6, channels: int = 3, side: int = 20, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, side, side + 3, generator=torch.Generator().manual_seed(seed))


def digits(seed: int = 0) -> Tensor:
    """Writing of several sizes at several places on a dark ground."""
    generator, found = torch.Generator().manual_seed(seed), torch.zeros(40, 1, 28, 28)
    for image in found:
        tall, wide = torch.randint(4, 21, (2,), generator=generator).tolist()
        top, left = (
            int(torch.randint(0, 29 - tall, (1,), generator=generator)),
            int(torch.randint(0, 29 - wide, (1,), generator=generator)),
        )
        image[0, top : top + tall, left : left + wide] = 0.1 + torch.rand(tall, wide, generator=generator)
    return found


def box(image: Tensor) -> tuple[int, int, int, int]:
    """Top, left, height and width of what is not darkest."""
    rows, columns = ((image > image.min()).any(dim=0).any(dim=axis).nonzero().flatten() for axis in (1, 0))
    return int(rows[0]), int(columns[0]), len(range(rows[0], rows[-1] + 1)), len(range(columns[0], columns[-1] + 1))


@pytest.mark.parametrize("width", [2, 10, 13, 20, 29])
def test_boxes_become_exactly_as_wide_as_asked_for(width: int) -> None:
    before = digits()
    after = WidthNormalize(width)(before)
    assert after.shape == (40, 1, 29, 29)
    for old, new in zip(before, after, strict=True):
        top, left, tall, wide = box(new)
        assert (tall, wide) == (box(old)[2], width)
        assert left == (29 - width) // 2
        assert top == (29 - tall) // 2


def test_a_picture_of_the_right_width_is_only_moved() -> None:
    image = digits()[:1]
    top, left, tall, wide = box(image[0])
    moved = WidthNormalize(wide, canvas=24)(image)[0]
    new = box(moved)
    torch.testing.assert_close(
        moved[:, new[0] : new[0] + tall, new[1] : new[1] + wide], image[0, :, top : top + tall, left : left + wide]
    )


def test_widths_are_scaled_by_linear_interpolation() -> None:
    row = torch.tensor([0.0, 1.0, 3.0, 2.0, 0.0])
    found = WidthNormalize(5, canvas=7)(row.expand(1, 1, 3, 5))[0, 0, 3]
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, 2.0, 3.0, 2.5, 2.0, 0.0]))


def test_widths_after_normalising_and_without_ink() -> None:
    before, net = digits(), WidthNormalize(12)
    torch.testing.assert_close(net(before * 3 - 1), net(before) * 3 - 1, rtol=0, atol=1e-5)
    torch.testing.assert_close(net(torch.full((2, 1, 28, 28), 0.3)), torch.full((2, 1, 29, 29), 0.3))
    assert WidthNormalize(12, canvas=16)(torch.ones(1, 1, 20, 20).tril())[0].shape == (1, 16, 16)
    with pytest.raises(ValueError, match="from 2 to the canvas of 29"):
        WidthNormalize(30)
    with pytest.raises(ValueError, match="a share from 0"):
        WidthNormalize(12, ground=1)


def test_widths_are_right_after_normalising_and_deforming() -> None:
    """Which leave rounding errors on the ground."""
    seen = deform((digits() - 0.1307) / 0.3081, torch.Generator().manual_seed(1))
    assert {box(image)[3] for image in WidthNormalize(10, ground=0)(seen)} == {10}
    assert max(box(image)[2] for image in WidthNormalize(10, ground=0)(seen)) == 28  # the errors count as ink
    for way, width in zip(paper.digit_ways(29)[1:], (10, 12, 14, 16, 18, 20), strict=True):
        boxes = [box(image) for image in way(seen)]
        assert {wide for _, _, _, wide in boxes} == {width}
        assert max(tall for _, _, tall, _ in boxes) < 28


def test_half_precision_counts_all_pixels() -> None:
    """Two thirds of a picture in one brightness: many more than the 256 up to which bfloat16 counts."""
    images = torch.rand(2, 1, 192, 192, generator=torch.Generator().manual_seed(0)).bfloat16()
    images[:, :, :128] = 0
    way = LocalEqualize(tiles=1, limit=1e9)
    assert way(images).dtype == torch.bfloat16
    torch.testing.assert_close(way(images).float(), way(images.float()), rtol=0, atol=5e-2)


@pytest.mark.parametrize("way", [Adjust(), Equalize(), LocalEqualize(), Contrast(3)])
def test_light_does_not_matter(way: nn.Module) -> None:
    """The same picture under a straight line of light; each picture for itself; and as spread as normalised pictures are."""
    images = pictures(side=40) ** 2
    seen = way(images)
    assert seen.shape == images.shape
    torch.testing.assert_close(way(5 * images - 2), seen, rtol=0, atol=2e-2)
    torch.testing.assert_close(way(images[2:4]), seen[2:4])
    assert 0.5 < seen.std().item() < 2.5
    assert torch.isfinite(way(torch.full((2, 3, 16, 16), 0.4))).all()
    torch.testing.assert_close(torch.export.export(way, (images,)).module()(images), seen)


def test_adjusted_pictures_are_cut_at_a_hundredth() -> None:
    images = pictures()
    found = Adjust(0.01)(images)
    for image, seen in zip(images, found, strict=True):
        order = image.flatten().sort().values
        low, high = order[int(0.01 * (len(order) - 1))], order[len(order) - 1 - int(0.01 * (len(order) - 1))]
        expected = ((image - low) / (high - low)).clamp(0, 1) * 2 - 1
        torch.testing.assert_close(seen / 3**0.5, expected, rtol=0, atol=1e-5)


def test_equalised_brightness_is_the_rank() -> None:
    stats = pytest.importorskip("scipy.stats")
    images = (pictures(channels=1) * 8).round() / 8  # with many that are equal
    for image, seen in zip(images, Equalize()(images), strict=True):
        ranks = torch.from_numpy(stats.rankdata(image.numpy().ravel(), method="average")).view_as(image)
        torch.testing.assert_close(seen / 3**0.5, (2 * (ranks - 0.5) / image.numel() - 1).float(), rtol=0, atol=1e-5)


def test_one_tile_without_a_limit_is_equalising() -> None:
    images = pictures(channels=1)
    local = LocalEqualize(tiles=1, limit=1e9, levels=4096)(images)
    torch.testing.assert_close(local, Equalize()(images), rtol=0, atol=2e-2)


def test_tiles_are_equalised_by_themselves_and_joined() -> None:
    """Of four tiles of different light each spans everything; along a line between two middles there is no step."""
    images = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    images[..., 20:] = 0.1 * images[..., 20:]
    images[..., 20:, :] += 2
    seen = LocalEqualize(tiles=2, limit=1e9, levels=1024)(images)[0, 0] / 3**0.5
    for rows in (slice(0, 10), slice(30, 40)):
        for columns in (slice(0, 10), slice(30, 40)):  # beyond the middles a single tile answers
            assert seen[rows, columns].min() < -0.9
            assert seen[rows, columns].max() > 0.9
    flat = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
    steps = LocalEqualize(tiles=4)(flat)[0, 0].diff(dim=1)
    assert steps.abs().max() < 0.6


def test_the_limit_keeps_flat_parts_flat() -> None:
    noise = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.05
    noise[0, 0, 0, 0] = 1.0
    free, bounded = (LocalEqualize(tiles=1, limit=limit)(noise).std() for limit in (1e9, 2.0))
    assert bounded < 0.3 * free


def test_contrasts_are_edges() -> None:
    image = torch.zeros(1, 1, 12, 12)
    image[..., 6:] = 1.0
    seen = Contrast(1)(image)[0, 0]
    assert seen[:, :3].abs().max() < 1e-4
    assert (seen[:, 5] < -0.5).all()
    assert (seen[:, 6] > 0.5).all()


def committee(count: int = 3, inputs: int = 12) -> MultiColumn:
    torch.manual_seed(0)
    return MultiColumn([nn.Sequential(mlp(inputs, 4, (5,))) for _ in range(count)])


def test_a_committee_is_the_mean_of_the_probabilities() -> None:
    net, x = committee(), 3 * torch.randn(50, 12)
    members = torch.stack([one(x).softmax(dim=1) for one in net.columns])
    torch.testing.assert_close(net(x).exp(), average(members))
    torch.testing.assert_close(net(x).softmax(dim=1), average(members))
    turned = MultiColumn(list(net.columns)[::-1])
    torch.testing.assert_close(turned(x), net(x))
    alone = MultiColumn([net.columns[0]])
    torch.testing.assert_close(alone(x), net.columns[0](x).log_softmax(dim=1))
    geometric = average(members, "logits")
    assert (geometric - net(x).exp()).abs().max() > 0.01
    with pytest.raises(ValueError, match="needs a column"):
        MultiColumn([])


def test_the_committees_loss_is_at_most_the_mean_loss() -> None:
    """Jensen's inequality, for whatever the members say."""
    net, x = committee(), 5 * torch.randn(200, 12)
    labels = torch.randint(4, (200,))
    mean = torch.stack([F.cross_entropy(one(x), labels) for one in net.columns]).mean()
    assert F.cross_entropy(net(x), labels) < mean


def images(side: int = 12, channels: int = 1) -> Dataset:
    torch.manual_seed(0)
    whole = Split(torch.rand(64, channels, side, side), torch.arange(64) % 3)
    return Dataset("x", "classification", whole, whole, whole, ("a", "b", "c"))


def test_columns_learn_as_if_each_were_alone() -> None:
    first, second = (partial(lenet, 1, 3, 12) for _ in range(2))
    torch.manual_seed(1)
    nets = [first(), second()]

    def copies() -> list[nn.Module]:
        made = [first(), second()]
        for mine, start in zip(made, nets, strict=True):
            mine.load_state_dict(start.state_dict())
        return [nn.Sequential(Equalize(), made[0]), nn.Sequential(Adjust(), made[1])]

    alone = Recipe(images(), model=lambda: copies()[0], epochs=3, batch_size=16, watch=())
    together = alone.replace(model=lambda: MultiColumn(copies()), loss=per_example(ColumnsLoss))
    joint = fit(together, 0).model
    for place in range(2):
        single = fit(alone.replace(model=lambda place=place: copies()[place]), 0).model
        for one, other in zip(joint.columns[place].parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    completing = fit(together.replace(loss=F.cross_entropy), 0).model
    moved = next(completing.columns[0].parameters()) - next(joint.columns[0].parameters())
    assert moved.abs().max() > 1e-3  # cross-entropy of the mean is something else


def test_treatment() -> None:
    plain = Recipe(images(), model=partial(lenet, 1, 3, 12), epochs=1, batch_size=32)
    treated = multi_column(plain, columns=6)
    net = treated.model()
    assert [type(one[0]) for one in net.columns] == [nn.Identity, Adjust, Equalize, LocalEqualize, Contrast, nn.Identity]
    assert parameters(net) == 6 * parameters(plain.model())
    assert not torch.equal(next(net.columns[0].parameters()), next(net.columns[5].parameters()))
    assert fit(treated, 0).logits().exp().sum(dim=1).sub(1).abs().max() < 1e-5
    widths = multi_column(plain, columns=7, ways="digits").model()
    assert [one[0].width for one in widths.columns[1:]] == [4, 5, 6, 7, 7, 8]
    assert fit(multi_column(plain, ways="digits"), 0).logits().shape == (64, 3)
    for both in (elr(multi_column(plain, 2)), multi_column(elr(plain), 2)):
        assert isinstance(both.loss, Corrected)
        assert fit(both, 0).logits().shape == (64, 3)
    with pytest.raises(AssayError, match="a committee already"):
        multi_column(treated)
    with pytest.raises(AssayError, match="the network has 0"):
        fit(treated.replace(model=plain.model), 0)
    with pytest.raises(AssayError, match="nobody to ask"):
        multi_column(plain, columns=1)


def test_treatment_is_for_images_only(table: Dataset) -> None:
    with pytest.raises(AssayError, match="columns are for classes of images"):
        multi_column(Recipe(table, model=partial(nn.Linear, 8, 2)))


@pytest.mark.parametrize("task", paper.COLUMNS)
def test_the_authors_columns_take_their_pictures(task: str) -> None:
    (channels, height, width), line = paper.COLUMNS[task]
    with torch.device("meta"):
        assert column(task)(torch.zeros(2, channels, height, width)).shape == (2, int(line.split("-")[-1][:-1]))
    with pytest.raises(ValueError, match="one of mnist"):
        column("norb")  # type: ignore[arg-type]


def test_small_is_small() -> None:
    net = paper.small()
    assert parameters(net) < 100_000
    assert macs(net, (1, 28, 28)) < 10_000_000
    plain = Recipe(images(28), model=paper.small, epochs=1)
    assert fit(paper.paper_training(plain), 0).logits().shape == (64, 10)


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    found = paper.columns_average_better(lab)
    assert len(found["committee"].y) == 7
    assert found["committee"].y[0] == pytest.approx(found["mean column"])
    assert found["committee"].y[-1] == pytest.approx(found["committee"].number)
    assert set(paper.better_than_training_longer(lab)) > {"committee", "one column"}
    assert len(paper.diversity_from_preprocessing(lab)) == 4
    assert len(paper.widths_disagree_more(lab)) == 2
