"""Scan paths as small pictures on the page, in the order in which `python -m zigma_pl paths` draws them."""

from itertools import pairwise

import numpy as np

from zigma_pl.commands.paths import named_orders
from zigma_pl.report.markup import Markup, tag
from zigma_pl.scan.paths import adjacency

SIDE = 8  # tokens
_CELL = 16
_NUM_PARTS = 6  # of a path, each darker than the one before


def scan_paths() -> Markup:
    """Return a figure for each path over 8 x 8 tokens."""
    figures = [_figure(title, order) for title, order in named_orders(SIDE, SIDE, seed=0)]
    return tag("div", figures, class_="paths")


def _figure(title: str, order: np.ndarray) -> Markup:
    share = 100 * adjacency(order, SIDE, SIDE)
    text = f"{share:.0f} % adjacent"
    side = SIDE * _CELL
    frame = tag("rect", x=0.5, y=0.5, width=side - 1, height=side - 1, class_="cell")
    label = f"Path of {title}: {text}"
    svg = tag("svg", frame, _way(order), viewBox=f"0 0 {side} {side}", role="img", aria_label=label)
    return tag("figure", tag("figcaption", title, tag("br"), text), svg, class_="path")


def _way(order: np.ndarray) -> list[Markup]:
    places = [(int(token % SIDE) * _CELL + _CELL // 2, int(token // SIDE) * _CELL + _CELL // 2) for token in order]
    bounds = [round(part * (len(places) - 1) / _NUM_PARTS) for part in range(_NUM_PARTS + 1)]
    parts = []
    for number, (start, end) in enumerate(pairwise(bounds)):
        points = " ".join(f"{x},{y}" for x, y in places[start : end + 1])
        opacity = f"{0.35 + 0.65 * number / (_NUM_PARTS - 1):.2f}"
        parts.append(tag("polyline", points=points, class_="way", stroke_opacity=opacity))
    (first_x, first_y), (last_x, last_y) = places[0], places[-1]
    first = tag("circle", cx=first_x, cy=first_y, r=5, class_="first")
    last = tag("rect", x=last_x - 4.5, y=last_y - 4.5, width=9, height=9, class_="last")
    return [*parts, first, last]
