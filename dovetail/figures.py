"""Pictures as inline SVG for a page, each in a wide and a narrow shape.

Colours of text and lines are CSS variables of the page, so that a picture follows its light or dark theme; every id is
prefixed, so that several pictures live in one page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#e08214", "#8c6bb1")
OTHER = "#999999"
"""Tol's bright scheme and two more; readable on light and on dark paper."""

INK, MUTED, LINE = "#111213", "#717273", "#d1d2d3"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"}
_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "font.family": "sans-serif",
    "text.parse_math": False,  # a `$` in a name is a dollar sign
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "axes.labelsize": "medium",
    "xtick.labelsize": "medium",
    "ytick.labelsize": "medium",
}
NEWLINE = "\n"
CHARACTER = 0.62
"""Width of a character, in font sizes: generous for the fonts that browsers use."""

@dataclass(frozen=True)
class Shape:
    """The size of a figure in inches and its font size in points, which the page scales with it."""

    name: str
    width: float
    height: float
    font: float

    @property
    def narrow(self) -> bool:
        return self.width < 5

    def style(self, salt: str) -> Any:
        """Settings of matplotlib; `salt` keeps ids the same from run to run."""
        return {**_STYLE, "font.size": self.font, "svg.hashsalt": f"{salt} {self.name}"}


@dataclass(frozen=True)
class Picture:
    """One figure in two shapes, and what its colours mean."""

    wide: str
    narrow: str
    legend: tuple[tuple[str, str], ...]  # label, colour
    note: str = ""


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour per name; names beyond the palette share one."""
    unique = list(dict.fromkeys(names))
    return {name: PALETTE[i] if i < len(PALETTE) else OTHER for i, name in enumerate(unique)}


def svg(name: str, shape: Shape, label: str, draw: Callable[[Axes, Shape], None]) -> str:
    """What `draw` draws as an `<svg>` element for a page: no prologue, no metadata, own ids, theme colours."""
    buffer = io.StringIO()
    prefix = f"{name}-{shape.name}"
    with matplotlib.rc_context(shape.style(name)):
        figure = Figure(figsize=(shape.width, shape.height), dpi=72, layout="constrained")
        draw(figure.add_subplot(), shape)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-labelledby="{prefix}-t">', text, flags=re.S)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)  # the page's own font
    title = f'<title id="{prefix}-t">{_escape(label)}</title>'
    return text.replace(">", f">{title}", 1).replace("xlink:href", "href").strip()


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def freeze(axes: Axes) -> None:
    """Lays the figure out now and for good: what follows is placed in display coordinates."""
    figure = axes.get_figure(root=True)
    if figure is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
