"""Numbers as people read them."""

import pytest

from assay.numbers import duration, short, signed, size


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.903, "0.903"), (-1234.5, "−1,234"), (7.43e-8, "7.43e−8"), (0.25001, "0.25")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_differences_have_a_sign() -> None:
    assert [signed(value) for value in (0.5, -0.5, 0.0)] == ["+0.5", "−0.5", "+0"]


@pytest.mark.parametrize(
    ("number", "plain", "flops"),
    [
        (12, "12", "12 FLOP"),
        (999, "999", "999 FLOP"),
        (269_322, "269 k", "269 kFLOP"),
        (999_600, "1 M", "1 MFLOP"),  # not 1e+03 k
        (2.5e12, "2.5 T", "2.5 TFLOP"),
    ],
)
def test_sizes_have_prefixes(number: float, plain: str, flops: str) -> None:
    assert (size(number), size(number, "FLOP")) == (plain, flops)


@pytest.mark.parametrize(("seconds", "text"), [(2e-5, "20 µs"), (0.25, "250 ms"), (12.34, "12.3 s"), (300, "5 min")])
def test_times_have_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
