"""Figures of a run: predicted and true boxes on scenes, and the loss curve."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 (the backend must be chosen first)
import numpy as np  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402
from matplotlib.text import Text  # noqa: E402

from pin_jax.runtime import files  # noqa: E402
from pin_jax.scoring.labels import COLOURS, INKS, place_labels  # noqa: E402
from pin_jax.scoring.pictures import png  # noqa: E402

LABEL_PAD = 3  # pixels around a name


def _save(figure: Figure, path: os.PathLike[str]) -> None:
    files.write_bytes(path, png(figure))
    plt.close(figure)


def _box(axes, box: np.ndarray, colour: str, dashed: bool) -> None:
    x1, y1, x2, y2 = box
    style = "--" if dashed else "-"
    for width, ink in ((4, "white"), (2, colour)):  # a white edge keeps it legible on any photograph
        axes.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=ink, linewidth=width, linestyle=style)
        )


def _label(axes: Axes, names: Sequence[str], boxes: Sequence[np.ndarray]) -> list[Text]:
    """Writes the names of boxes on an image whose place in the figure is settled."""
    texts = [
        axes.text(0, 0, textwrap.fill(name, 38), fontsize=7, color=INKS[k % len(INKS)], va="top",
                  bbox={"facecolor": COLOURS[k % len(COLOURS)], "pad": 1, "edgecolor": "none"})
        for k, name in enumerate(names)
    ]  # fmt: skip
    if not texts:
        return texts
    canvas: Any = axes.figure.canvas  # of Agg
    renderer, picture = canvas.get_renderer(), axes.get_window_extent()
    extents = [text.get_window_extent(renderer) for text in texts]
    sizes = np.array([(extent.width, extent.height) for extent in extents]) + 2 * LABEL_PAD
    corners = axes.transData.transform([(box[0], box[1]) for box in boxes])
    anchors = np.stack([corners[:, 0] - picture.x0, picture.y1 - corners[:, 1]], 1)  # y points down
    for text, (x, y) in zip(texts, place_labels(anchors, sizes, (picture.width, picture.height)), strict=True):
        at = (picture.x0 + x + LABEL_PAD, picture.y1 - y - LABEL_PAD)
        text.set_position(tuple(axes.transData.inverted().transform(at)))
    return texts


def predictions(
    path: os.PathLike[str],
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    names: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[np.ndarray]],
    true: Sequence[Sequence[np.ndarray]] | None = None,
    columns: int = 6,
) -> None:
    """Saves a sheet of images with predicted boxes (solid) and true ones (dashed), named.

    Args:
      images: uint8[H, W, 3] each. titles: above each, a text of some lines.
      names, predicted, true: for each image its names and boxes float[4] in pixels.
    """
    columns = min(columns, len(images))
    rows, wide = -(-len(images) // columns), 2.6 if columns > 1 else 5.2
    figure, grid = plt.subplots(rows, columns, figsize=(wide * columns, (wide + 0.4) * rows), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    width = int(16 * wide)  # letters
    for axes, image, title in zip(grid.flat, images, titles):  # noqa: B905 (the grid may have empty places)
        axes.imshow(image)
        lines = [part for line in title.splitlines() for part in textwrap.wrap(line, width)]
        axes.set_title("\n".join(lines[:6] + ["..."] * (len(lines) > 6)), fontsize=7)
    if true is not None:
        figure.suptitle("solid: what the VLM wrote; dashed: the truth", fontsize=9)
    figure.tight_layout()
    figure.canvas.draw()  # settles where the images are
    for i, axes in enumerate(grid.flat[: len(images)]):
        for k, box in enumerate(predicted[i]):
            colour = COLOURS[k % len(COLOURS)]
            if true is not None:
                _box(axes, true[i][k], colour, dashed=True)
            _box(axes, box, colour, dashed=False)
        _label(axes, names[i], predicted[i])
    _save(figure, path)


def loss_curve(path: os.PathLike[str], rows: Sequence[dict[str, float]]) -> None:
    """Saves loss against step from `reporting.read_scalars`."""
    rows = [row for row in rows if isinstance(row.get("loss"), int | float)]
    figure, axes = plt.subplots(figsize=(6, 3.5))
    axes.plot([r["step"] for r in rows], [r["loss"] for r in rows], color=COLOURS[1])
    axes.set(xlabel="step", ylabel="next-token cross-entropy of the box", title="training the insert")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    _save(figure, path)


def inspection(path: os.PathLike[str], name: str, found: dict, maps: np.ndarray | None) -> None:
    """Saves what `pin_jax.scoring.inspection` found as one figure.

    Args:
      found: its JSON. maps: float[3, side, side], principal components of the insert, or None where there is none.
    """
    figure, grid = plt.subplots(2, 4, figsize=(15, 7))
    for axes in grid[0]:
        axes.axis("off")
    if maps is not None:
        for i, (axes, values) in enumerate(zip(grid[0], maps, strict=False)):
            most = np.abs(values).max()
            axes.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most)
            axes.set_title(
                f"psi(S), component {i + 1}: {found['insert']['explained'][i]:.0%} of the variance", fontsize=9
            )
        low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
        grid[0, 3].imshow(np.moveaxis((maps - low) / np.maximum(high - low, 1e-9), 0, -1))
        grid[0, 3].set_title("components 1, 2, 3 as red, green, blue", fontsize=9)
    errors = found["errors"]
    for axes, key, title in (
        (grid[1, 0], "size", "side of the object, px of 224"),
        (grid[1, 1], "objects", "objects in the image"),
    ):
        rows = {label: row for label, row in errors[key].items() if row["queries"]}
        axes.bar(list(rows), [row["mIoU"] for row in rows.values()], color=COLOURS[1])
        for i, row in enumerate(rows.values()):
            axes.text(i, row["mIoU"], row["queries"], ha="center", va="bottom", fontsize=7)
        axes.set(ylim=(0, 1), ylabel="mIoU", xlabel=title)
        axes.tick_params(labelsize=7)
    values = np.array(
        [[np.nan if cell["mIoU"] is None else cell["mIoU"] for cell in row] for row in errors["position"]]
    )
    grid[1, 2].imshow(values, cmap="viridis", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(values):
        grid[1, 2].text(column, row, f"{value:.2f}\n{errors['position'][row][column]['queries']}", ha="center",
                        va="center", color="white", fontsize=8)  # fmt: skip
    grid[1, 2].set_title("mIoU by where the object's centre is", fontsize=9)
    grid[1, 2].axis("off")
    shares = {label: share for label, share in errors["confusion"].items() if share is not None}
    grid[1, 3].bar(list(shares), list(shares.values()), color=COLOURS[2])
    grid[1, 3].set(ylim=(0, 1), ylabel="share of queries", xlabel="the answer lies on")
    grid[1, 3].set_title("images of several objects", fontsize=9)
    figure.suptitle(f"{name}: numbers on bars and places are queries", fontsize=9)
    figure.tight_layout()
    _save(figure, path)


def bars(path: os.PathLike[str], tables: dict[str, dict[str, tuple[float, float]]]) -> None:
    """Saves mIoU of every row, with its standard deviation over seeds, a panel for each model.

    Args:
      tables: model -> row -> mean, deviation.
    """
    figure, grid = plt.subplots(1, len(tables), figsize=(6 * len(tables), 4), squeeze=False, sharey=True)
    for axes, (model, rows) in zip(grid[0], tables.items(), strict=True):
        means, deviations = zip(*rows.values(), strict=True)
        axes.bar(list(rows), means, yerr=deviations, capsize=3, color=[COLOURS[name != "pin"] for name in rows])
        axes.set(title=model, ylabel="mIoU")
        axes.tick_params(axis="x", rotation=45)
        axes.grid(axis="y", alpha=0.3)
    figure.tight_layout()
    _save(figure, path)
