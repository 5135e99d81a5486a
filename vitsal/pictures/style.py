"""Static figures for slides: 16:9, large type, colour-blind safe, saved as PNG at 200 dpi and as SVG."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt

from vitsal.errors import printable

SLIDE = (13.333, 7.5)  # inches, 16:9
# Okabe & Ito's palette and a grey, told apart with any colour vision; markers tell the curves apart in grey too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")


def set_slide_style() -> None:
    """Set matplotlib's defaults for this course's figures."""
    plt.rcParams.update(
        {
            "figure.figsize": SLIDE,
            "figure.dpi": 60,
            "figure.constrained_layout.use": True,
            "font.size": 20,
            "text.parse_math": False,  # names of files and models may hold dollar signs
            "axes.titlesize": 20,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "lines.linewidth": 3,
            "lines.markersize": 9,
            "legend.frameon": False,
            "legend.fontsize": 17,
            "legend.title_fontsize": 17,
            "legend.handlelength": 2.5,  # dashes show
            "svg.fonttype": "none",
            "savefig.dpi": 200,
        }
    )


def save_figure(figure: plt.Figure, folder: str | Path, name: str) -> Path:
    """Save a figure as `<folder>/<name>.png`, 200 dpi, and `.svg`; returns the PNG's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("svg", "png"):
        (folder / f"{name}.{kind}").write_bytes(figure_bytes(figure, kind))
    return folder / f"{name}.png"


def figure_bytes(figure: plt.Figure, kind: str, dpi: float = 200) -> bytes:
    """A figure as the content of a file: "png", "svg" or "jpeg"; at any time the same of the same figure."""
    buffer = BytesIO()
    # after saving, matplotlib gives a figure laid out by hand the default layout, and at the next saving warns of it
    with plt.rc_context({"figure.constrained_layout.use": False}):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def shorten(name: str, most: int) -> str:
    """A name that fits beside a picture: its middle left out where it is longer than `most` characters."""
    name, half = printable(name), (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def curve_style(number: int) -> dict[str, str]:
    """Colour and marker of a curve by its number, colour-blind safe; from the ninth on colours come with other markers.

    Example:
        >>> curve_style(1)["marker"], curve_style(9)["marker"], curve_style(1)["color"] == curve_style(9)["color"]
        ('s', '^', True)
    """
    again, place = divmod(number, len(COLOURS))
    return {"color": COLOURS[place], "marker": MARKERS[(place + again) % len(MARKERS)]}
