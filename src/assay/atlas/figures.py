"""Figures of the atlas: Altair charts, drawn to SVG when the site is built, coloured by the style sheet when it is read.

A figure is drawn twice, wide for desks and narrow for phones, so that its letters keep their size. Drawing takes a
tenth of a second; so an SVG is kept under a fingerprint of all that it shows and of the code that draws it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from html import escape, unescape
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from assay.atlas.kept import kept
from assay.numbers import short

WIDE, NARROW, WHOLE = 660, 340, 1072  # pixels, the whole figure: beside the margin, on a phone, over the whole page
CHARACTER = 6.4  # mean width of a letter of 12 pixels

#: What a chart says for a colour -> what the page says for it. The charts' own values never reach a reader.
INK, SOFT, RULE, ACCENT, CONTROL, PAGE = (f"#00000{digit}" for digit in range(1, 7))
_COLOURS = {
    INK: "currentColor",
    SOFT: "var(--soft)",
    RULE: "var(--rule)",
    ACCENT: "var(--accent)",
    CONTROL: "var(--control)",
    PAGE: "var(--page)",
}
#: Controls are all grey; the dashes tell them apart.
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [1, 4], [12, 4])


@dataclass(frozen=True)
class Figure:
    """One figure in its two widths.

    Attributes:
        wide: SVG for wide screens.
        narrow: SVG for phones.
        caption: how to read it.
    """

    wide: str
    narrow: str
    caption: str


# ------------------------------------------------------------------------------------------------ which figures


def of_claim(entry: Mapping[str, Any], subject: str | None, says: Mapping[str, float]) -> list[Figure]:
    """The figures of a recorded claim: lines where arms have curves, dots where they are numbers.

    Args:
        entry: the claim's evidence.
        subject: the arm that the first expectation is about; it gets the accent.
        says: the paper's own number of an arm, where it can be compared.
    """
    found = []
    lines = {arm: line for arm, line in entry["curves"].items() if _has_points(line)}
    if lines:
        found.append(_draw(_curves, _curve_caption(lines, entry["seeds"]), lines=lines, subject=subject, unit=entry["unit"]))
    numbers = {arm: values for arm, values in entry["arms"].items() if arm not in lines}
    if numbers:
        arms = entry["arms"] if lines and len(entry["arms"]) <= 8 else numbers
        shown = {arm: says[arm] for arm in arms if arm in says and _comparable(says[arm], arms)}
        caption = "One dot for each seed" + (", a line joining each seed over the arms" if entry["seeds"] > 1 else "")
        caption += "; the bar is the mean, written at the right."
        caption += " The ring is the paper’s number." if shown else ""
        found.append(_draw(_dots, caption, arms=arms, subject=subject, says=shown, unit=entry["unit"]))
    return found


def of_trial(
    arms: Mapping[str, Mapping[str, float]], subject: str | None, between: Mapping[str, tuple[float, float]], unit: str
) -> Figure:
    """All seeds of a trial's arms.

    Args:
        arms: arm -> seed -> number.
        subject: the arm that gets the accent.
        between: the interval of an arm's mean, where it has one.
        unit: what the numbers are.
    """
    caption = "One dot for each seed, a line joining each seed over the arms; the bar is the mean, written at the right, the "
    caption += "line through it the 95 % interval of the mean."
    return _draw(_dots, caption, arms=arms, subject=subject, says={}, unit=unit, between=between)


def prices(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Effect against price.

    Args:
        points: ``label``, ``href``, ``time`` (seconds of the method over those of the control), ``gain`` (per cent),
            ``holds`` and ``title``.
    """
    caption = "Filled: the claim holds. To the right of the line the method takes more time than its control."
    if _is_bent([p["gain"] for p in points]):
        caption += f" Beyond {_KNEE:.0f} % the vertical scale is logarithmic."
    titles = {p["href"]: p["title"] for p in points}
    shown = [{name: value for name, value in p.items() if name != "title"} for p in points]
    return _titled(_draw(_prices, caption, WHOLE, points=shown), titles)


def years(papers: Sequence[Mapping[str, Any]], last: int) -> Figure:
    """Papers by year, a dot a paper: ``year``, ``href``, ``judged`` and ``title``."""
    caption = "A dot a paper; filled once at least one claim has been measured."
    titles = {p["href"]: p["title"] for p in papers}
    shown = [{name: value for name, value in p.items() if name != "title"} for p in papers]
    return _titled(_draw(_years, caption, WHOLE, papers=shown, last=last), titles)


def comparison(gains: Mapping[str, Mapping[str, float]], best: Mapping[str, Sequence[str]], control: str) -> Figure:
    """How much every method gains over the control, task by task.

    Args:
        gains: row -> arm -> difference from the control.
        best: row -> the arms that win or cannot be told from the winner.
        control: name of the control.
    """
    caption = f"Bars: difference from {control}, which is the vertical line. Coloured: the best of its row, or not told from it. "
    caption += "On narrow screens a dot for each row."
    return _draw(_gains, caption, WHOLE, gains=gains, best=best)


def against(points: Sequence[Mapping[str, Any]], name: str, unit: str, rows: Sequence[str]) -> Figure:
    """What methods reach, against a number that is known of each.

    Args:
        points: ``x``, ``y``, ``low``, ``high`` (over seeds), ``label`` (the method) and ``row``.
        name: of the number: years stand on an even scale, all else on a logarithmic one where it spreads.
        unit: of what they reach.
        rows: the tasks; the last is filled.
    """
    marks = [f"Hollow: {row}." for row in rows[:-1]] + [f"Filled: {rows[-1]}."] if len(rows) > 1 else []
    caption = " ".join([*marks, "Lines reach from the lowest seed to the highest."])
    return _draw(_against, caption, WHOLE, points=points, name=name, unit=unit, rows=rows)


def _has_points(line: Mapping[str, Any]) -> bool:
    return any(y is not None for y in line.get("mean", ())) or any(
        y is not None for seed in line.get("seeds", {}).values() for y in seed["y"]
    )


def _is_cloud(seed: Mapping[str, Any]) -> bool:
    """Are these many points in no order, which a line through them would only scribble over?

    Between numbers without order two in three neighbours go up and down in turn.
    """
    ys = [y for x, y in sorted(zip(seed["x"], seed["y"], strict=True), key=lambda point: point[0] or 0) if y is not None]
    steps = [after - before for before, after in itertools.pairwise(ys)]
    turns = sum(one * two < 0 for one, two in itertools.pairwise(steps))
    return len(ys) >= 30 and turns > 0.45 * len(ys)


def _curve_caption(lines: Mapping[str, Any], seeds: int) -> str:
    if seeds == 1:
        return "One seed."
    if any(_is_cloud(seed) for line in lines.values() for seed in line.get("seeds", {}).values()):
        return f"One dot for each point of {seeds} seeds."
    if any("seeds" in line for line in lines.values()):
        return "One line for each seed."
    return f"Mean of {seeds} seeds; the band reaches from the lowest to the highest."


def _comparable(value: float, arms: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether a paper's number fits on the same axis as ours: the same scale, and not so far off that ours are squeezed."""
    ours = [number for values in arms.values() for number in values.values()]
    low, high = min(ours), max(ours)
    if low >= 0 and high <= 1 < abs(value):
        return False  # a share and a percentage
    span = high - low
    return span == 0 or max(high, value) - min(low, value) <= 2.5 * span


# ------------------------------------------------------------------------------------------------ drawing, and keeping


def _draw(chart: Callable[..., Any], caption: str, wide: int = WIDE, **shown: Any) -> Figure:
    return Figure(_kept(chart, wide, shown), _kept(chart, NARROW, shown), caption)


def _titled(figure: Figure, titles: Mapping[str, str]) -> Figure:
    """A figure whose links say where they lead. The keyboard passes them over: the list under the figure has the same ones."""

    def name(found: re.Match[str]) -> str:
        return f'<a href="{found[1]}" tabindex="-1"><title>{escape(titles[unescape(found[1])])}</title>'

    wide, narrow = (re.sub(r'<a href="([^"]*)">', name, svg) for svg in (figure.wide, figure.narrow))
    return replace(figure, wide=wide, narrow=narrow)


def _kept(chart: Callable[..., Any], width: int, shown: Mapping[str, Any]) -> str:
    what = json.dumps([_maker(), chart.__name__, width, shown], ensure_ascii=False)
    return kept(what, "svg", partial(_drawn, chart, width, shown))


def _drawn(chart: Callable[..., Any], width: int, shown: Mapping[str, Any]) -> str:
    from altair.utils.schemapi import debug_mode

    with debug_mode(False):  # checking a chart against the schema takes longer than drawing it; the converter tells what is wrong
        return _svg(chart(width, **shown))


@cache
def _maker() -> str:
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return f"{code} {version('altair')} {version('vl-convert-python')}"


_BASE = "https://vega.github.io/vega-datasets/"  # what the converter puts before a link inside the site
_FRAME = re.compile(r'<path class="(?:background|foreground)"|<rect width="\d+" height="\d+" fill="white"')
_NOISE = re.compile(
    r' (?:xmlns|xmlns:xlink|version|class|role|aria-[a-z]+|font-family|pointer-events|stroke-miterlimit|target)="[^"]*"'
    r'| opacity="1"| stroke-dasharray="1,0"'
)
_LONG = re.compile(r"-?\d+\.\d{3,}(?:e-?\d+)?")
_EMPTY = re.compile(r"<g>\s*</g>")


def _svg(chart: Any) -> str:
    """SVG to stand inside a page: colours are the page's, sizes in the view box only, nothing superfluous."""
    import vl_convert

    svg = str(vl_convert.vegalite_to_svg(chart.to_dict(validate=False), allowed_base_urls=[]))
    svg = re.sub(r"<[^>]*>", _tidy_tag, svg)
    while _EMPTY.search(svg):
        svg = _EMPTY.sub("", svg)
    return re.sub(r'<svg width="[\d.]+" height="[\d.]+"', "<svg", svg, count=1)


def _tidy_tag(found: re.Match[str]) -> str:
    """One tag (text between tags is left as it is): page colours, relative links, two decimals."""
    tag = found.group()
    if _FRAME.match(tag):
        return ""
    for own, ours in _COLOURS.items():
        tag = tag.replace(f'"{own}"', f'"{ours}"')
    tag = _NOISE.sub("", tag).replace(f'xlink:href="{_BASE}', 'href="')
    return _LONG.sub(lambda number: f"{float(number.group()):.2f}".rstrip("0").rstrip("."), tag)


# ------------------------------------------------------------------------------------------------ charts


def _alt() -> Any:
    import altair

    altair.data_transformers.disable_max_rows()
    return altair


def _finish(layers: Sequence[Any], width: int, height: float, left: float, right: float, top: float, bottom: float) -> Any:
    """A chart of exactly this size: the margins are ours, not what the text of one machine's fonts asks for."""
    alt = _alt()
    axis = alt.AxisConfig(
        labelColor=SOFT, labelFontSize=12, gridColor=RULE, domain=False, ticks=False, title=None, labelPadding=8
    )
    return alt.layer(  # all at once: every step of Altair's own way to say this copies the whole chart
        *layers,
        width=width - left - right,
        height=height,
        padding={"left": left, "right": right, "top": top, "bottom": bottom},
        autosize=alt.AutoSizeParams(type="none"),
        config=alt.Config(aria=False, background="transparent", view=alt.ViewConfig(strokeWidth=0), axis=axis),
    )


def _text(words: str, x: float, y: float, colour: str = SOFT, **more: Any) -> Any:
    """Words at a place in pixels."""
    alt = _alt()
    mark = {"fontSize": 12, "align": "left", "baseline": "middle", "color": colour, "lineBreak": "\n", "lineHeight": 14, **more}
    data = alt.Data(values=[{"words": words}])
    return alt.Chart(data).mark_text(**mark).encode(alt.XValue(x), alt.YValue(y), alt.Text("words:N"))


def _rule(x: float, y: float, x2: float, y2: float, **more: Any) -> Any:
    """A thin line between two places in pixels."""
    alt = _alt()
    rule = alt.Chart(alt.Data(values=[{}])).mark_rule(**{"color": CONTROL, "strokeWidth": 0.8, "opacity": 0.7, **more})
    return rule.encode(alt.XValue(x), alt.YValue(y), alt.X2Value(x2), alt.Y2Value(y2))


def _curves(width: int, lines: Mapping[str, Any], subject: str | None, unit: str) -> Any:
    alt = _alt()
    wide = width == WIDE
    rows: list[dict[str, Any]] = []
    for arm, line in lines.items():
        seeds = line.get("seeds") or {"mean": {"x": line["x"], "y": line["mean"], "low": line["low"], "high": line["high"]}}
        for seed, points in seeds.items():
            low, high = points.get("low", points["y"]), points.get("high", points["y"])
            for x, y, lowest, highest in zip(points["x"], points["y"], low, high, strict=True):
                if y is not None and x is not None:
                    rows.append({"arm": arm, "seed": seed, "x": x, "y": y, "low": lowest, "high": highest})
    first = next(iter(lines.values()))
    x_name, y_name = first["x_name"], first["y_name"] or unit
    log_x = _logarithmic([row["x"] for row in rows], x_name, 100)
    log_y = _logarithmic([row["y"] for row in rows], y_name, 1000)
    rows = [row for row in rows if (row["x"] > 0 or not log_x) and (row["y"] > 0 or not log_y)]
    if log_y:  # a band may touch zero where the line does not
        floor = min(row["y"] for row in rows)
        rows = [row | {"low": max(row["low"], min(floor, row["y"]))} for row in rows]
    x_range = _range([row["x"] for row in rows], log_x, 0)
    y_range = _range([row[name] for row in rows for name in ("low", "high")], log_y, 0.04)

    labels = {arm: _wrap(arm, 26 if wide else 15) for arm in lines}
    sample = 20 if wide and len(lines) > 3 else 0  # room for a piece of each line beside its name, where dashes must tell
    right = 18 + sample + CHARACTER * max(len(part) for label in labels.values() for part in label.split("\n"))
    left, top, bottom = 48, 34, 44
    plot = width - left - right
    heights = {arm: 14 * (label.count("\n") + 1) + 4 for arm, label in labels.items()}
    height = max(280 if wide else 230, sum(heights.values()))

    scale_x = alt.Scale(type="log" if log_x else "linear", domain=x_range, nice=False, zero=False)
    scale_y = alt.Scale(type="log" if log_y else "linear", domain=y_range, nice=False, zero=False)
    apart = {"labelFlush": True, "labelOverlap": "greedy", "labelSeparation": 6}
    axis_x = alt.Axis(grid=False, ticks=True, tickColor=RULE, **apart, **_ticks(x_range, log_x, 6 if wide else 4))
    if not log_x and all(float(row["x"]).is_integer() for row in rows):
        axis_x.tickMinStep = 1  # there is no layer 1.5
    axis_y = alt.Axis(**_ticks(y_range, log_y, 5))
    x = alt.X("x:Q", scale=scale_x, axis=axis_x)

    layers = []
    order = sorted(lines, key=lambda arm: arm == subject)  # the method lies on top
    dashes = {arm: _DASHES[place % len(_DASHES)] for place, arm in enumerate(arm for arm in lines if arm != subject)}
    for arm in order:
        mine = [row for row in rows if row["arm"] == arm]
        if not mine:
            continue
        colour = ACCENT if arm == subject else CONTROL
        each = len({row["seed"] for row in mine}) > 1
        chart = alt.Chart(alt.Data(values=mine))
        if any(row["high"] > row["low"] for row in mine):
            layers.append(
                chart.mark_area(color=colour, opacity=0.16).encode(
                    x=x, y=alt.Y("low:Q", scale=scale_y, axis=axis_y), y2=alt.Y2("high:Q")
                )
            )
        mark = {"color": colour, "strokeWidth": 1.2 if each else 2.25 if arm == subject else 1.6, "opacity": 0.7 if each else 1}
        if any(_is_cloud(points) for points in lines[arm].get("seeds", {}).values()):
            layers.append(
                chart.mark_circle(color=colour, size=18, opacity=0.45).encode(x=x, y=alt.Y("y:Q", scale=scale_y, axis=axis_y))
            )
            continue
        layers.append(
            chart.mark_line(**mark, strokeDash=dashes.get(arm, [1, 0]), strokeCap="round", strokeJoin="round").encode(
                x=x, y=alt.Y("y:Q", scale=scale_y, axis=axis_y), detail=alt.Detail("seed:N")
            )
        )
        if len(mine) <= 15:
            layers.append(
                chart.mark_circle(color=colour, size=26, opacity=1).encode(x=x, y=alt.Y("y:Q", scale=scale_y, axis=axis_y))
            )

    ends = {}
    for arm in lines:
        last = {row["seed"]: row for row in sorted((r for r in rows if r["arm"] == arm), key=lambda r: float(r["x"]))}
        if last:
            y = statistics.fmean(row["y"] for row in last.values())
            ends[arm] = (max(row["x"] for row in last.values()), y)
    wanted = {arm: height * (1 - _share(y, y_range, log_y)) for arm, (_, y) in ends.items()}
    for arm, place in _apart(wanted, heights, height).items():
        colour = ACCENT if arm == subject else SOFT
        end = plot * _share(ends[arm][0], x_range, log_x)
        if plot - end > 8:  # a line that ends early is led to the margin at its last height
            layers.append(_rule(end + 5, wanted[arm], plot, wanted[arm], strokeDash=[1, 3]))
        if abs(wanted[arm] - place) > 3:
            layers.append(_rule(plot + 2, wanted[arm], plot + 12, place))
        shift = 7 * labels[arm].count("\n")
        weight = 600 if arm == subject else 400
        layers.append(_text(labels[arm], plot + 16 + sample, place - shift, colour, fontWeight=weight))
        if sample:
            ink = ACCENT if arm == subject else CONTROL
            place_of = {"x": plot + 15, "y": place - shift, "x2": plot + 13 + sample, "y2": place - shift}
            layers.append(_rule(**place_of, color=ink, strokeWidth=2, opacity=1, strokeDash=dashes.get(arm, [1, 0])))
    layers.append(_text(_clip(y_name, (width - 10) / CHARACTER), -left, -20))
    layers.append(_text(_clip(x_name, (plot + left) / CHARACTER), plot, height + 34, align="right"))
    return _finish(layers, width, height, left, right, top, bottom)


def _dots(
    width: int,
    arms: Mapping[str, Mapping[str, float]],
    subject: str | None,
    says: Mapping[str, float],
    unit: str,
    between: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> Any:
    alt = _alt()
    wide = width == WIDE
    values = [value for arm in arms.values() for value in arm.values()] + list(says.values())
    values += [end for ends in between.values() for end in ends]
    log = _logarithmic(values, unit, 100)
    left = 12 + min(200, CHARACTER * max(map(len, arms))) if wide else 8
    right, step, top, bottom = 66, 40 if wide else 46, 30, 30
    height = step * len(arms)
    plot = width - left - right
    span = _range(values, log, 0.05)
    scale = alt.Scale(type="log" if log else "linear", domain=span, nice=False, zero=False)
    x = alt.X("x:Q", scale=scale, axis=alt.Axis(**_ticks(span, log, 6 if wide else 4)))
    drop = 0.5 if wide else 0.68  # where in its row an arm's dots lie: on phones the name stands above them
    y = alt.Y("row:Q", scale=alt.Scale(domain=[0, len(arms)], reverse=True, nice=False), axis=None)

    layers = []
    rows = [
        {"arm": arm, "row": place + drop, "seed": seed, "x": value}
        for place, (arm, seeds) in enumerate(arms.items())
        for seed, value in seeds.items()
    ]
    if len(arms) > 1:
        joined = alt.Chart(alt.Data(values=rows)).mark_line(color=CONTROL, strokeWidth=0.75, opacity=0.45)
        layers.append(joined.encode(x=x, y=y, detail=alt.Detail("seed:N"), order=alt.Order("row:Q")))
    for place, (arm, seeds) in enumerate(arms.items()):
        colour = ACCENT if arm == subject else CONTROL
        mine = [row for row in rows if row["arm"] == arm]
        mean = statistics.fmean(seeds.values())
        layers.append(alt.Chart(alt.Data(values=mine)).mark_circle(color=colour, size=52, opacity=0.6).encode(x=x, y=y))
        if arm in between:
            low, high = between[arm]
            reach = alt.Chart(alt.Data(values=[{"x": low, "x2": high, "row": place + drop}]))
            layers.append(reach.mark_rule(color=colour, strokeWidth=2, opacity=1).encode(x=x, x2=alt.X2("x2:Q"), y=y))
        tick = alt.Chart(alt.Data(values=[{"x": mean, "row": place + drop}]))
        layers.append(tick.mark_tick(color=colour, orient="vertical", size=20, thickness=2.5, opacity=1).encode(x=x, y=y))
        if arm in says:
            ring = alt.Chart(alt.Data(values=[{"x": says[arm], "row": place + drop}]))
            layers.append(ring.mark_point(color=INK, size=70, strokeWidth=1.5, opacity=1, filled=False).encode(x=x, y=y))
        label, middle = (_wrap(arm, 31), step * (place + drop)) if wide else (_clip(arm, plot / CHARACTER), step * place + 12)
        middle -= 7 * label.count("\n")
        ours = INK if arm != subject else ACCENT
        halo = {} if wide else {"stroke": PAGE, "strokeWidth": 3}  # lines of the seeds pass behind it
        layers.append(_text(label, -left if wide else -2, middle, ours, fontWeight=600 if arm == subject else 400, **halo))
        layers.append(_text(short(mean), plot + right, step * (place + drop), ours, align="right", fontWeight=600))
    layers.append(_text(_clip(unit, (width - 60) / CHARACTER), -left, -18))
    layers.append(_text("mean", plot + right, -18, align="right"))
    return _finish(layers, width, height, left, right, top, bottom)


def _gains(width: int, gains: Mapping[str, Mapping[str, float]], best: Mapping[str, Sequence[str]]) -> Any:
    return _gain_bars(width, gains, best) if width == WHOLE else _gain_dots(width, gains, best)


def _gain_bars(width: int, gains: Mapping[str, Mapping[str, float]], best: Mapping[str, Sequence[str]]) -> Any:
    """A column of bars for each method."""
    alt = _alt()
    arms = list(dict.fromkeys(arm for row in gains.values() for arm in row))
    left, right, step, top = 12 + CHARACTER * max(map(len, gains)), 8, 26, 34
    column = (width - left - right) / len(arms)
    low = min(0.0, *(gain for row in gains.values() for gain in row.values()))
    high = max(1e-9, *(gain for row in gains.values() for gain in row.values()))
    room = column - 62  # of bars; the numbers stand beside them
    begin = {arm: place * column for place, arm in enumerate(arms)}
    zero = {arm: begin[arm] + 44 + room * -low / (high - low) for arm in arms}

    bars = [
        {"x": zero[arm], "x2": zero[arm] + room * gain / (high - low), "row": number + 0.5, "best": arm in best[row]}
        for number, (row, by_arm) in enumerate(gains.items())
        for arm, gain in by_arm.items()
    ]
    numbers = [
        {"x": begin[arm] + 36, "row": number + 0.5, "words": f"{100 * gain:+.1f}", "best": arm in best[row]}
        for number, (row, by_arm) in enumerate(gains.items())
        for arm, gain in by_arm.items()
    ]
    x = alt.X("x:Q", scale=alt.Scale(domain=[0, width - left - right], nice=False, padding=0), axis=None)
    # Without padding=0 bars would be given room at both ends, and the words beside them would not stand where they do.
    y = alt.Y("row:Q", scale=alt.Scale(domain=[0, len(gains)], reverse=True, nice=False, padding=0), axis=None)
    layers = [_rule(at, 0, at, step * len(gains)) for at in zero.values()]
    for is_best, colour in ((False, CONTROL), (True, ACCENT)):
        mine = alt.Chart(alt.Data(values=[bar for bar in bars if bar["best"] is is_best]))
        layers.append(mine.mark_bar(color=colour, size=12, opacity=0.85).encode(x=x, x2=alt.X2("x2:Q"), y=y))
        texts = alt.Chart(alt.Data(values=[number for number in numbers if number["best"] is is_best]))
        mark = texts.mark_text(color=ACCENT if is_best else SOFT, align="right", baseline="middle", fontSize=12)
        layers.append(mark.encode(x=x, y=y, text=alt.Text("words:N")))
    for number, row in enumerate(gains):
        layers.append(_text(row, -left, step * (number + 0.5), INK))
    layers += [_text(arm, begin[arm], -18, INK, fontWeight=600) for arm in arms]
    return _finish(layers, width, step * len(gains), left, right, top, 12)


def _gain_dots(width: int, gains: Mapping[str, Mapping[str, float]], best: Mapping[str, Sequence[str]]) -> Any:
    """A line for each method, a dot on it for each task."""
    alt = _alt()
    arms = list(dict.fromkeys(arm for row in gains.values() for arm in row))
    left, right, step, top, bottom = 8, 20, 46, 12, 30
    span = _range([100 * gain for row in gains.values() for gain in row.values()] + [0.0], False, 0.05)
    x = alt.X("x:Q", scale=alt.Scale(domain=span, nice=False, zero=False), axis=alt.Axis(**_ticks(span, False, 4)))
    y = alt.Y("row:Q", scale=alt.Scale(domain=[0, len(arms)], reverse=True, nice=False), axis=None)
    plot = width - left - right
    at = plot * _share(0.0, span, False)
    layers = [_rule(at, 0, at, step * len(arms))]
    for is_best, colour in ((False, CONTROL), (True, ACCENT)):
        dots = [
            {"x": 100 * by_arm[arm], "row": place + 0.68}
            for row, by_arm in gains.items()
            for place, arm in enumerate(arms)
            if arm in by_arm and (arm in best[row]) is is_best
        ]
        layers.append(alt.Chart(alt.Data(values=dots)).mark_circle(color=colour, size=52, opacity=0.6).encode(x=x, y=y))
    for place, arm in enumerate(arms):
        layers.append(_text(arm, -2, step * place + 12, INK, stroke=PAGE, strokeWidth=3))
        layers.append(_text(arm, -2, step * place + 12, INK))
    return _finish(layers, width, step * len(arms), left, right, top, bottom)


def _prices(width: int, points: Sequence[Mapping[str, Any]]) -> Any:
    alt = _alt()
    wide = width != NARROW
    left, right, top, bottom, height = 62, 24 if wide else 8, 36, 48, 440 if wide else 320
    plot = width - left - right
    times, gains = [p["time"] for p in points], [p["gain"] for p in points]
    x_range = _range([*times, 0.5, 2.0], True, 0.08)
    # A few very large effects must not squeeze all others into a line: the scale then grows with the logarithm, from 10 % on.
    bent = _is_bent(gains)
    y_range = _range([_bend(gain) if bent else gain for gain in [*gains, 0.0]], False, 0.1)
    marks = [0, *(sign * size for size in (10, 30, 100, 300, 1000, 3000, 10_000) for sign in (1, -1))]
    across_ticks = _ticks(x_range, True, 6 if wide else 4) | {"labelExpr": "'×' + datum.label"}
    up_ticks: dict[str, Any] = {"tickCount": 5}
    up_scale: dict[str, Any] = {"domain": y_range, "nice": False, "zero": False}
    if bent:
        up_ticks = {"values": [mark for mark in marks if y_range[0] < _bend(mark) < y_range[1]]}
        up_scale |= {"type": "symlog", "constant": _KNEE, "domain": [_unbend(end) for end in y_range]}
    x = alt.X(
        "time:Q",
        scale=alt.Scale(type="log", domain=x_range, nice=False),
        axis=alt.Axis(grid=False, ticks=True, tickColor=RULE, **across_ticks),
    )
    y = alt.Y(
        "gain:Q",
        scale=alt.Scale(**up_scale),
        axis=alt.Axis(labelExpr="(datum.value == 0 ? '0' : format(datum.value, '+,')) + ' %'", **up_ticks),
    )
    base = alt.Chart(alt.Data(values=[{"time": 1, "gain": 0}]))
    layers = [base.mark_rule(color=CONTROL, strokeDash=[2, 3]).encode(x=x), base.mark_rule(color=CONTROL).encode(y=y)]
    for holds in (False, True):
        mine = [p for p in points if p["holds"] == holds]
        if mine:
            dots = alt.Chart(alt.Data(values=mine)).mark_point(
                color=ACCENT, fill=ACCENT if holds else PAGE, size=90 if wide else 64, strokeWidth=1.8, opacity=1
            )
            layers.append(dots.encode(x=x, y=y, href=alt.Href("href:N")))
    places = []
    for p in points:
        gain = _bend(p["gain"]) if bent else p["gain"]
        places.append((plot * _share(p["time"], x_range, True), height * (1 - _share(gain, y_range, False)), p["label"]))
    for label, begin, down, side in _free_labels(places, plot + right):
        layers.append(_text(label, begin, down, INK, fontSize=12 if wide else 11, stroke=PAGE, strokeWidth=3, align=side))
    layers.append(_text("effect, in per cent of the control", -left, -20))
    layers.append(_text("time of the method / time of the control", plot, height + 38, align="right"))
    return _finish(layers, width, height, left, right, top, bottom)


def _against(width: int, points: Sequence[Mapping[str, Any]], name: str, unit: str, rows: Sequence[str]) -> Any:
    alt = _alt()
    wide = width != NARROW
    left, right, top, bottom, height = 52, 24 if wide else 8, 36, 48, 400 if wide else 320
    plot = width - left - right
    across = [p["x"] for p in points]
    log = name != "year" and min(across) > 0 and max(across) > 5 * min(across)
    x_range, y_range = _range(across, log, 0.06), _range([p[end] for p in points for end in ("low", "high")], False, 0.08)
    ticks = {"tickCount": 8 if wide else 4, "format": "d"} if name == "year" else _ticks(x_range, log, 6 if wide else 4)
    x = alt.X(
        "x:Q", scale=alt.Scale(type="log" if log else "linear", domain=x_range, nice=False), axis=alt.Axis(grid=False, **ticks)
    )
    y = alt.Y("y:Q", scale=alt.Scale(domain=y_range, nice=False, zero=False), axis=alt.Axis(tickCount=5))
    layers = []
    for row in rows:
        mine = alt.Chart(alt.Data(values=[p for p in points if p["row"] == row]))
        colour = ACCENT if row == rows[-1] else CONTROL
        spread = alt.Y("low:Q", scale=alt.Scale(domain=y_range, nice=False, zero=False))
        layers.append(mine.mark_rule(color=colour, strokeWidth=1.2).encode(x=x, y=spread, y2=alt.Y2("high:Q")))
        dots = mine.mark_point(
            color=colour, fill=colour if row == rows[-1] else PAGE, size=70 if wide else 50, strokeWidth=1.8, opacity=1
        )
        layers.append(dots.encode(x=x, y=y))
    places, bars = [], []
    for p in points:
        x_at = plot * _share(p["x"], x_range, log)
        top_at, y_at, bottom_at = (height * (1 - _share(p[end], y_range, False)) for end in ("high", "y", "low"))
        places.append((x_at, y_at, p["label"]))
        bars.append((x_at - 2, x_at + 2, top_at, bottom_at))
    # The tasks of one method lie above each other, so that one of them has its name.
    for label, begin, down, side in _free_labels(places, plot + right, bars, near=math.inf):
        layers.append(_text(label, begin, down, INK, fontSize=12 if wide else 11, stroke=PAGE, strokeWidth=3, align=side))
        layers.append(_text(label, begin, down, INK, fontSize=12 if wide else 11, align=side))
    layers += [_text(unit, -left, -20), _text(name, plot, height + 38, align="right")]
    return _finish(layers, width, height, left, right, top, bottom)


def _is_bent(gains: Sequence[float]) -> bool:
    return max(map(abs, gains), default=0.0) > 120


_KNEE = 10.0  # per cent: where the bent scale turns from linear to logarithmic


def _bend(gain: float) -> float:
    return math.copysign(math.log1p(abs(gain) / _KNEE), gain)


def _unbend(place: float) -> float:
    return math.copysign(_KNEE * math.expm1(abs(place)), place)


def _free_labels(
    places: Sequence[tuple[float, float, str]],
    width: float,
    bars: Sequence[tuple[float, float, float, float]] = (),
    near: float = 60.0,
) -> list[tuple[str, float, float, str]]:
    """Label, place of its end, middle and alignment for the dots that have room for one, over nothing else.

    Dots of one paper within ``near`` pixels of each other share a label. Those at the rim come first: they are what a reader
    looks for. A label stands on the right of its dot, else on the left, else above or below.

    Args:
        places: across, down and label of every dot.
        width: where the figure ends on the right.
        bars: left, right, top and bottom of what else must not be written over.
        near: pixels.
    """
    taken = [(across - 6, across + 6, down - 6, down + 6) for across, down, _ in places] + list(bars)
    found: list[tuple[str, float, float, str]] = []
    middle = statistics.fmean(down for _, down, _ in places) if places else 0.0
    for across, down, label in sorted(places, key=lambda place: -abs(place[1] - middle)):
        if any(label == known and math.hypot(begin - across, at - down) < near for known, begin, at, _ in found):
            continue
        size = 1.05 * CHARACTER * len(label)
        beside = ((across + 10, down, "left"), (across - 10, down, "right"))
        for begin, at, side in (*beside, (across, down - 15, "center"), (across, down + 15, "center")):
            start = begin - {"left": 0.0, "center": size / 2, "right": size}[side]
            box = (start, start + size, at - 7, at + 7)
            if box[0] >= 0 and box[1] <= width and not any(_overlap(box, other) for other in taken):
                found.append((label, begin, at, side))
                taken.append(box)
                break
    return found


def _overlap(one: tuple[float, ...], two: tuple[float, ...]) -> bool:
    return one[0] < two[1] and two[0] < one[1] and one[2] < two[3] and two[2] < one[3]


def _years(width: int, papers: Sequence[Mapping[str, Any]], last: int) -> Any:
    alt = _alt()
    first = min(1989, *(p["year"] for p in papers)) if papers else 1989
    left, right, top, bottom = 10, 10, 8, 26
    counts: dict[int, int] = {}
    rows = []
    for p in sorted(papers, key=lambda p: not p["judged"]):
        counts[p["year"]] = counts.get(p["year"], 0) + 1
        rows.append({**p, "level": counts[p["year"]]})
    most = max(counts.values(), default=1)
    plot = width - left - right
    step = min(14.0, plot / (last - first + 1), 260 / most)
    height = step * (most + 0.5)
    axis = alt.Axis(grid=False, format="d", tickCount=4 if width == NARROW else 8, ticks=True, tickColor=RULE, labelFlush=False)
    x = alt.X("year:Q", scale=alt.Scale(domain=[first - 0.5, last + 0.5], nice=False, zero=False), axis=axis)
    y = alt.Y("level:Q", scale=alt.Scale(domain=[0.5, 0.5 + height / step], nice=False, zero=False), axis=None)
    size = (0.78 * step) ** 2 * math.pi / 4
    layers = [alt.Chart(alt.Data(values=[{"y": 0}])).mark_rule(color=RULE).encode(alt.YValue(height))]
    for judged in (False, True):
        mine = [row for row in rows if row["judged"] == judged]
        if mine:
            dots = alt.Chart(alt.Data(values=mine)).mark_point(
                color=ACCENT if judged else CONTROL, fill=ACCENT if judged else PAGE, size=size, strokeWidth=1.3, opacity=1
            )
            layers.append(dots.encode(x=x, y=y, href=alt.Href("href:N")))
    return _finish(layers, width, height, left, right, top, bottom)


# ------------------------------------------------------------------------------------------------ scales and words


def _logarithmic(values: Sequence[float], name: str, ratio: float) -> bool:
    positive = [value for value in values if value > 0]
    if not positive:
        return False
    if "logarithmic" in name:
        return True
    if len(positive) < len(values):
        return False
    low, high = min(positive), max(positive)
    # Shares that reach high are read as shares, unless the small ones would all look like nothing.
    return high / low > (1e4 if 0.5 < high <= 1 else ratio)


def _range(values: Sequence[float], log: bool, pad: float) -> list[float]:
    """What an axis shows: all values and a little room."""
    low, high = min(values), max(values)
    if log:
        low, high = math.log10(low), math.log10(high)
    room = pad * (high - low) or (0.5 if log else 0.05 * abs(high) or 1.0) * (high == low)
    low, high = low - room, high + room
    return [10**low, 10**high] if log else [low, high]


def _ticks(span: Sequence[float], log: bool, count: int) -> dict[str, Any]:
    if not log:
        return {"tickCount": count, **({"format": "~s"} if max(map(abs, span)) >= 10_000 else {})}
    low, high = math.log10(span[0]), math.log10(span[1])
    steps = (1,) if high - low > 2 else (1, 2, 5) if high - low > 0.7 else range(1, 10)
    values = [m * 10.0**k for k in range(math.floor(low), math.ceil(high) + 1) for m in steps]
    values = [value for value in values if span[0] * 0.999 <= value <= span[1] * 1.001]
    keep = math.ceil(len(values) / count)
    return {
        "values": [float(f"{value:.6g}") for value in values[::keep]],
        "format": "~e" if span[0] < 1e-4 else "~g" if span[1] < 1e4 else "~s",
    }


def _share(value: float, span: Sequence[float], log: bool) -> float:
    """Where on an axis a value lies, from 0 to 1."""
    if log:
        value, span = math.log10(value), [math.log10(end) for end in span]
    return (value - span[0]) / (span[1] - span[0])


def _apart(wanted: Mapping[str, float], heights: Mapping[str, float], height: float) -> dict[str, float]:
    """Places of labels as near as possible to where they are wanted, none over another, none outside."""
    order = sorted(wanted, key=wanted.__getitem__)
    places: dict[str, float] = {}
    edge = -6.0
    for arm in order:  # downwards, each below the one before it
        places[arm] = max(wanted[arm], edge + heights[arm] / 2)
        edge = places[arm] + heights[arm] / 2
    edge = height + 8.0
    for arm in reversed(order):  # and up again from the lower end
        places[arm] = min(places[arm], edge - heights[arm] / 2)
        edge = places[arm] - heights[arm] / 2
    return places


def _wrap(words: str, width: int) -> str:
    lines = [""]
    for word in words.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(_clip(line, width) for line in lines)


def _clip(words: str, width: float) -> str:
    return words if len(words) <= width else words[: int(width) - 1].rstrip() + "…"
