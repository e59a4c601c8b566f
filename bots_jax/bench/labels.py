"""Place labels beside the points of a scatter plot without overlaps.

In: points and their texts. Out: the texts on the axes, each at the nearest free place
around its point, with a thin line where it had to move away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Beside the point first, then above and below, then in between.
_ANGLES = tuple(
    math.radians(a)
    for a in (0, 180, 45, 315, 135, 225, 90, 270, *(b for b in range(15, 360, 15) if b % 45))
)
_DISTANCES = (9.0, 12.0, 15.0, 19.0, 24.0, 30.0, 36.0, 50.0, 68.0, 90.0)  # points
_HALF = 5.0  # half the side of a marker


class Box(NamedTuple):
    """A rectangle on the canvas, in pixels."""

    left: float
    bottom: float
    right: float
    top: float


def place_labels(
    figure: Any,
    axes: Any,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    taken: Sequence[tuple[float, float]] = (),
    colours: Mapping[str, str] | None = None,
) -> None:
    """Write each text beside its point, at the nearest place that is free.

    Args:
      figure, axes: Matplotlib's; limits and layout are final after this.
      points: data coordinates. texts: one a point.
      taken: further points that labels keep clear of.
      colours: of some texts; the others are black.
    """
    figure.canvas.draw()
    figure.set_layout_engine("none")  # labels are placed on the axes as they now stand
    renderer, scale = figure.canvas.get_renderer(), figure.dpi / 72
    at = [tuple(axes.transData.transform(point)) for point in points]
    frame = axes.get_window_extent(renderer)
    inside = Box(frame.x0, frame.y0, frame.x1, frame.y1)
    kept_clear = [tuple(axes.transData.transform(point)) for point in taken]
    obstacles = [_around(x, y, _HALF * scale) for x, y in at]
    obstacles += [_around(x, y, 2 * scale) for x, y in kept_clear]
    labels: list[Box] = []
    for i in _crowded_first(at):
        probe = axes.annotate(texts[i], points[i], fontsize=8)
        extent = probe.get_window_extent(renderer)
        probe.remove()
        dx, dy, box = _free_place(
            at[i], extent.width, extent.height, obstacles, labels, inside, scale
        )
        labels.append(box)
        # The line to the label is in the way of those that follow.
        obstacles += [box, *_leader(at[i], box, scale)]
        far = math.hypot(dx, dy) > 10 * scale
        axes.annotate(
            texts[i],
            points[i],
            xytext=(
                (box.left + box.right) / 2 / scale - at[i][0] / scale,
                (box.bottom + box.top) / 2 / scale - at[i][1] / scale,
            ),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            color=(colours or {}).get(texts[i], "black"),
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "#777777"} if far else None,
        )


def _around(x: float, y: float, half: float) -> Box:
    return Box(x - half, y - half, x + half, y + half)


def _crowded_first(at: Sequence[tuple[float, float]]) -> list[int]:
    """Points by the distance to their nearest neighbour, the closest first."""

    def nearest(i: int) -> float:
        others = (math.dist(at[i], at[j]) for j in range(len(at)) if j != i)
        return min(others, default=math.inf)

    return sorted(range(len(at)), key=nearest)


def _free_place(
    at: tuple[float, float],
    width: float,
    height: float,
    obstacles: Sequence[Box],
    labels: Sequence[Box],
    inside: Box,
    scale: float,
) -> tuple[float, float, Box]:
    """The offset and box of least overlap, the nearest of those without any."""
    best: tuple[float, float, float, Box] | None = None
    for distance in _DISTANCES:
        for angle in _ANGLES:
            dx, dy = distance * scale * math.cos(angle), distance * scale * math.sin(angle)
            x = at[0] + dx + math.copysign(width / 2, dx) * (abs(math.cos(angle)) > 0.3)
            y = at[1] + dy + math.copysign(height / 2, dy) * (abs(math.sin(angle)) > 0.3)
            box = Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            cost = sum(_overlap(box, other) for other in obstacles) + _outside(box, inside)
            cost += sum(
                _overlap(part, label) for part in _leader(at, box, scale) for label in labels
            )
            if best is None or cost < best[0]:
                best = (cost, dx, dy, box)
            if cost == 0:
                return dx, dy, box
    assert best is not None
    return best[1:]


def _leader(at: tuple[float, float], box: Box, scale: float) -> list[Box]:
    """Small boxes along the straight line from a point to the middle of its label."""
    x, y = (box.left + box.right) / 2, (box.bottom + box.top) / 2
    shares = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    return [
        _around(at[0] + share * (x - at[0]), at[1] + share * (y - at[1]), scale) for share in shares
    ]


def _overlap(a: Box, b: Box) -> float:
    across = min(a.right, b.right) - max(a.left, b.left)
    up = min(a.top, b.top) - max(a.bottom, b.bottom)
    return max(across, 0.0) * max(up, 0.0)


def _outside(box: Box, frame: Box) -> float:
    across = max(frame.left - box.left, 0.0) + max(box.right - frame.right, 0.0)
    up = max(frame.bottom - box.bottom, 0.0) + max(box.top - frame.top, 0.0)
    return 1e3 * (across + up)
