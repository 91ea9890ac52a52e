"""A figure as a PNG that a page can show: at most 500 KB."""

from __future__ import annotations

import io

from matplotlib.figure import Figure
from PIL import Image

LARGEST = 500_000  # bytes of a picture
DPI, SMALLEST_DPI = 110, 50


def png(figure: Figure) -> bytes:
    """A figure in at most `LARGEST` bytes: in 256 colours, then smaller, where photographs need more."""
    dpi, colours = DPI, 0
    while True:
        held = io.BytesIO()
        figure.savefig(held, format="png", dpi=dpi)
        if colours:
            picture = Image.open(held).convert("RGB").quantize(colours, Image.Quantize.MEDIANCUT)
            held = io.BytesIO()
            picture.save(held, "PNG", optimize=True)
        if held.tell() <= LARGEST or dpi <= SMALLEST_DPI:
            return held.getvalue()
        dpi, colours = (int(dpi * 0.85), colours) if colours else (dpi, 256)
