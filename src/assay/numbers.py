"""How numbers and lists of names are written for people, on pages and at the terminal."""

from __future__ import annotations

from collections.abc import Sequence


def short(value: float, digits: int = 4) -> str:
    """A number with the digits that mean something: ``0.9041``, ``12,345``, ``7.43e−8``."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "−")
    text = f"{value:.{digits}g}"
    if "e" in text:
        factor, power = f"{value:.2e}".split("e")
        text = f"{factor}e{int(power)}"
    return text.replace("-", "−")


def signed(value: float) -> str:
    """A difference, with its sign."""
    return short(value, 3) if value < 0 else "+" + short(value, 3)


def size(number: float, unit: str = "") -> str:
    """A count with three digits and a prefix, which stands before the unit where there is one: ``269 k``, ``538 kFLOP``."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * factor:
            return f"{number / factor:.3g} {letter}{unit}"
    return f"{number:.0f} {unit}".rstrip()


def trait(name: str, value: float) -> str:
    """A number that is known of a method, as people write it: years as they are, sizes in thousands and millions."""
    return str(int(value)) if name == "year" else size(value)


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min"


def listed(names: Sequence[str]) -> str:
    """``"a"``, ``"a and b"``, ``"a, b and c"``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
