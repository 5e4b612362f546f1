"""Pictures of decisions: well-formed SVG whose images and bars carry the numbers they stand for."""

from __future__ import annotations

import base64
import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from assay.drawing import Tile, as_image, png, tiles

SVG = "{http://www.w3.org/2000/svg}"


def decoded(uri: str) -> np.ndarray:
    image = pytest.importorskip("PIL.Image")
    return np.asarray(image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


def test_a_png_is_what_others_read():
    grey, colours = np.linspace(0, 1, 12).reshape(3, 4), np.random.default_rng(0).random((2, 5, 3))
    assert np.array_equal(decoded(png(grey)), np.rint(255 * grey))
    assert np.array_equal(decoded(png(colours)), np.rint(255 * colours))
    assert decoded(png(np.array([[-1.0, 2.0]]))).tolist() == [[0, 255]]


def test_examples_become_pictures():
    x = np.arange(12.0)
    assert as_image(x, None) is x
    assert as_image(x, (3, 4)).shape == as_image(x, (1, 3, 4)).shape == (3, 4)
    colours = as_image(x, (3, 2, 2))
    assert colours.shape == (2, 2, 3)
    assert colours[0, 0].tolist() == [0, 4, 8]


def test_rows_of_tiles():
    rows = [[Tile(np.zeros((2, 2)), ("a < b",)), Tile(np.arange(3.0), (), -0.5)], [Tile(np.ones((2, 2, 3)), ("x", "y"), 0.25)]]
    root = ElementTree.fromstring(tiles(rows, ["first & best"]))
    assert len(root.findall(f"{SVG}image")) == 3
    assert [text.text for text in root.iter(f"{SVG}text")] == ["first & best", "a < b", "x", "y"]
    bars = [bar for bar in root.findall(f"{SVG}rect") if bar.get("fill") != "none"]
    assert [bar.get("fill") for bar in bars] == ["#d33", "#2b6cb0"]
    assert float(bars[0].get("width")) == 2 * float(bars[1].get("width"))
    strip = decoded(root.findall(f"{SVG}image")[1].get("href"))
    assert strip.tolist() == [[0, 128, 255]]
