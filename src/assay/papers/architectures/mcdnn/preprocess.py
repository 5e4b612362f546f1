"""The same picture in several ways: what makes the columns of a committee differ.

For digits, their width; for photographs, their light. All are modules without weights, (B, C, H, W) -> (B, C, H, W), and stand
in front of a column's network. They look at each picture alone, and give the same for pictures that were scaled by a straight
line (as normalising does), up to that line.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from assay.papers.architectures.ciresan_cnn import ContrastMaps

#: Numbers spread evenly between minus and plus this have the standard deviation 1, as normalised pictures do.
_SPREAD = math.sqrt(3)


class WidthNormalize(nn.Module):
    """Digits made equally wide: the box around the ink ``width`` pixels wide and as high as it was, in the middle of a canvas.

    Ink is what is brighter than the ground, the darkest pixel of the picture. What is nearly as dark is ground too: where
    pictures were turned or scaled before, interpolation leaves rounding errors and grey fringes that are no ink. The outermost
    columns of the box stay the outermost ones; between them the picture is interpolated. A picture without ink stays empty, and
    what is higher than the canvas is cut.

    Args:
        width: pixels from the first column with ink to the last, at least 2; the paper's are 10, 12, 14, 16, 18 and 20.
        canvas: height and width of the result; 29 in the paper.
        ground: share of the range from the darkest to the brightest pixel that counts as ground, in [0, 1).

    Shape: (B, C, H, W) -> (B, C, canvas, canvas).
    """

    def __init__(self, width: int, canvas: int = 29, ground: float = 0.01) -> None:
        super().__init__()
        if not 2 <= width <= canvas:
            raise ValueError(f"width must be from 2 to the canvas of {canvas} pixels, not {width}")
        if not 0 <= ground < 1:
            raise ValueError(f"ground must be a share from 0 to less than 1, not {ground}")
        self.width, self.canvas, self.ground = width, canvas, ground

    def forward(self, images: Tensor) -> Tensor:
        count, channels, height, _ = images.shape
        dark, bright = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
        images = torch.where(images > dark + self.ground * (bright - dark), images, dark)
        ink = (images > dark).any(dim=1)  # (B, H, W)
        (left, right), (top, bottom) = _ends(ink.any(dim=1)), _ends(ink.any(dim=2))  # (B, 1) each
        places = torch.arange(self.canvas, device=images.device)

        across = places - (self.canvas - self.width) // 2
        source = left + across.clamp(0, self.width - 1) * ((right - left) / (self.width - 1))  # (B, canvas)
        lower = source.floor().clamp_max(right)  # rounding may have gone beyond
        share = (source - lower).to(images.dtype)[:, None, None]
        columns = torch.stack([lower, torch.minimum(lower + 1, right)]).long()[:, :, None, None]
        first, second = (images.gather(3, one.expand(count, channels, height, -1)) for one in columns)
        wide = torch.where((across >= 0) & (across < self.width), first + share * (second - first), dark)

        down = places - (self.canvas - (bottom - top + 1)).div(2, rounding_mode="floor")  # (B, canvas)
        rows = (top + down).clamp(0, height - 1)[:, None, :, None].expand(count, channels, -1, self.canvas)
        there = (down >= 0) & (down <= bottom - top)
        return torch.where(there[:, None, :, None], wide.gather(2, rows), dark)


def _ends(there: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last true place of each row of (B, L), as (B, 1); of a row without any the first and last place."""
    first, behind = (one.int().argmax(dim=1, keepdim=True) for one in (there, there.flip(1)))
    return first, there.shape[1] - 1 - behind


class Adjust(nn.Module):
    """Light and contrast evened out by a straight line: a hundredth of the pixels becomes darkest, a hundredth brightest.

    Args:
        share: of the values of a picture that is cut at either end.
    """

    def __init__(self, share: float = 0.01) -> None:
        super().__init__()
        self.share = share

    def forward(self, images: Tensor) -> Tensor:
        values = images.flatten(1).sort(dim=1).values
        cut = int(self.share * (values.shape[1] - 1))
        low, high = values[:, cut], values[:, values.shape[1] - 1 - cut]
        middle, half = (high + low) / 2, ((high - low) / 2).clamp_min(torch.finfo(images.dtype).tiny)
        return ((images - _each(middle)) / _each(half)).clamp(-1, 1) * _SPREAD


class Equalize(nn.Module):
    """Every brightness as frequent as any other: a pixel's is its rank among those of its picture.

    The brightness of colours is the mean of the channels; all move by as much, so that the colour stays.
    """

    def forward(self, images: Tensor) -> Tensor:
        grey = images.mean(dim=1, keepdim=True)
        flat = grey.flatten(1)
        values = flat.sort(dim=1).values
        # Of pixels that are equally bright, the middle of their ranks.
        below, upto = (torch.searchsorted(values, flat, right=right) for right in (False, True))
        return _brightened(images, grey, ((below + upto) / (2 * flat.shape[1])).view_as(grey))


class LocalEqualize(nn.Module):
    """The same among the pixels around, with bounded contrast: detail in the shadows and in the light at once (CLAHE).

    Each tile has its own table of ranks; between the middles of four tiles their answers are interpolated.

    Args:
        tiles: in each direction.
        limit: how many times as frequent as the mean a brightness may be in a tile; what is above is given to all, which keeps
            noise in flat parts from being blown up.
        levels: of brightness.
    """

    def __init__(self, tiles: int = 4, limit: float = 3.0, levels: int = 64) -> None:
        super().__init__()
        self.tiles, self.limit, self.levels = tiles, limit, levels

    def forward(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        exact = torch.promote_types(images.dtype, torch.float32)  # half precision cannot count beyond 256
        grey = images.mean(dim=1, keepdim=True)
        low, high = grey.amin(dim=(2, 3), keepdim=True), grey.amax(dim=(2, 3), keepdim=True)
        scaled = (grey - low) / (high - low).clamp_min(torch.finfo(images.dtype).tiny)
        level = (scaled * self.levels).long().clamp_max(self.levels - 1)[:, 0]  # (B, H, W)

        own, near = [], []  # for rows and columns: the tile of each place, and the two whose middles it lies between
        for side in (height, width):
            places = torch.arange(side, device=images.device)
            own.append(places * self.tiles // side)
            between = ((places + 0.5) * (self.tiles / side) - 0.5).clamp(0, self.tiles - 1)
            first = between.long()
            near.append((first, (first + 1).clamp_max(self.tiles - 1), (between - first).to(exact)))
        (top, bottom, down), (left, right, across) = near

        at = (own[0][:, None] * self.tiles + own[1]) * self.levels + level
        counts = torch.zeros(count, self.tiles**2 * self.levels, dtype=exact, device=images.device)
        counts = counts.scatter_add(1, at.flatten(1), torch.ones_like(at, dtype=exact).flatten(1))
        counts = counts.view(count, self.tiles**2, self.levels)
        pixels = counts.sum(dim=2, keepdim=True).clamp_min(1)
        kept = torch.minimum(counts, self.limit * pixels / self.levels)
        kept = kept + (pixels - kept.sum(dim=2, keepdim=True)) / self.levels
        ranks = ((kept.cumsum(dim=2) - kept / 2) / pixels).flatten(1)

        def answer(rows: Tensor, columns: Tensor) -> Tensor:
            """What the tiles in these rows and columns say of every pixel: (B, H, W)."""
            tile = rows[:, None] * self.tiles + columns
            return ranks.gather(1, (tile * self.levels + level).flatten(1)).view_as(level)

        above = torch.lerp(answer(top, left), answer(top, right), across)
        below = torch.lerp(answer(bottom, left), answer(bottom, right), across)
        return _brightened(images, grey, torch.lerp(above, below, down[:, None]).unsqueeze(1).to(images.dtype))


class Contrast(nn.Module):
    """Edges instead of light: the response of a difference of Gaussians, of standard deviation 1 in every picture.

    Args:
        channels: C of the images.
        size: side of the filter, an odd number; 5 in the paper.
    """

    def __init__(self, channels: int, size: int = 5) -> None:
        super().__init__()
        self.maps = ContrastMaps(channels, size)

    def forward(self, images: Tensor) -> Tensor:
        _, brighter, darker = self.maps(images).chunk(3, dim=1)
        response: Tensor = brighter - darker
        return response / response.std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)


def _each(value: Tensor) -> Tensor:
    return value[:, None, None, None]


def _brightened(images: Tensor, grey: Tensor, ranks: Tensor) -> Tensor:
    """Pictures whose brightness is their ranks (0 to 1), spread evenly; what sets channels apart stays, over its spread."""
    spread = grey.std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
    return (images - grey) / spread + (2 * ranks - 1) * _SPREAD
