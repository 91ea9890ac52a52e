"""Regions from superpixels, folders and functions, means over them, and PAMR against its equation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gem_jax import GEM, heatmaps, refinement, regions
from input_pipeline.errors import UserError
from tests.fixtures.gem_models import photo

SAID = ("A photo of {article} {}.",)


def halves(key, picture: Image.Image) -> np.ndarray:
    """Left and right."""
    return np.repeat([[0, 7]], 3, 0)


def test_superpixels_keep_to_edges():
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:, 40:] = 200
    found = regions.read(regions.superpixels, None, Image.fromarray(pixels))
    assert found.shape == (60, 90) and found.dtype == np.int32 and 10 < found.max() < 200
    assert not set(found[:, :39].ravel()) & set(found[:, 41:].ravel())
    one = Image.new("RGB", (1, 1))
    assert regions.read(regions.superpixels, None, one).tolist() == [[0]]


def test_a_folder_of_masks(tmp_path):
    labels = np.array([[3, 3, 9], [3, 9, 9]], np.uint8)
    Image.fromarray(labels).save(tmp_path / "a.png")
    np.savez(tmp_path / "b.npz", labels == 9)
    np.savez(tmp_path / "c.npz", masks=np.stack([labels == 9, np.ones((2, 3), bool)]))
    np.savez(tmp_path / "d.npz", one=labels, two=labels)
    (tmp_path / "e.npz").write_bytes(b"PK broken")
    np.savez(tmp_path / "f.npz", labels.astype(np.float32))
    source, picture = regions.source(tmp_path), Image.new("RGB", (6, 4))
    found = regions.read(source, "photos/a.jpg", picture)
    assert found.tolist() == [[0, 0, 0, 0, 1, 1]] * 2 + [[0, 0, 1, 1, 1, 1]] * 2
    assert set(regions.read(source, "c.jpg", picture).ravel()) == {0}  # the last mask lies on top, everywhere
    for key, message in {
        "x.jpg": r"regions of x: neither x\.png nor x\.npz",
        "d.jpg": "2 arrays; expected one",
        "e.jpg": r"e\.npz: cannot be read",
        "f.jpg": r"float32\[2, 3\] for a picture of 4 x 6 pixels; expected int\[H, W\]",
        "b.jpg": r"bool\[2, 3\]",
    }.items():
        with pytest.raises(UserError, match=message):
            regions.read(source, key, picture)
    with pytest.raises(UserError, match="the picture has no name"):
        regions.read(source, np.zeros((4, 6, 3)), picture)
    with pytest.raises(UserError, match="no such folder; expected slic, or a folder"):
        regions.source(tmp_path / "nowhere")


def test_means_are_those_of_the_enlarged_maps():
    rng = np.random.default_rng(0)
    maps, own = rng.standard_normal((3, 4, 5)).astype(np.float32), rng.integers(0, 6, (23, 31))
    large = heatmaps.enlarge(maps, own.shape)
    expected = np.stack([[m[own == r].mean() for r in range(6)] for m in large])
    matrices = [heatmaps.bilinear(n, m) for n, m in zip(maps.shape[1:], own.shape, strict=True)]
    np.testing.assert_allclose(regions.means(maps, own, matrices), expected, rtol=1e-5, atol=1e-6)
    picture = Image.fromarray(photo(0, own.shape))
    np.testing.assert_allclose(
        refinement.refine("regions", maps, picture, own), expected[:, own], rtol=1e-5, atol=1e-6
    )  # fmt: skip


def test_regions_are_merged_through_chains():
    angle = np.radians([0.0, 60.0, 30.0, 150.0])  # 0 and 1 are alike through 2 alone
    features = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], -1), jnp.float32)[None]
    merged = regions.merged(jnp.array([[0, 1, 2, 3]]), features, 8, 0.8)
    assert merged.tolist() == [[0, 0, 0, 3]]


def pamr_by_hand(maps: np.ndarray, x: np.ndarray, iterations: int, dilations: tuple[int, ...]) -> np.ndarray:
    """Pixel by pixel."""
    height, width = x.shape[:2]

    def at(y, c):
        return min(max(y, 0), height - 1), min(max(c, 0), width - 1)

    around = [(d * y, d * c) for d in dilations for y in (-1, 0, 1) for c in (-1, 0, 1)]
    for _ in range(iterations):
        out = np.zeros_like(maps)
        for y in range(height):
            for c in range(width):
                seen = np.array([x[at(y + down, c + right)] for down, right in around])
                sigma = seen.std(0, ddof=1)
                beside = [at(y + down, c + right) for down, right in around if down or right]
                logits = np.array([-(np.abs(x[y, c] - x[p]) / (0.1 * sigma + 1e-8)).mean() for p in beside])
                weights = np.exp(logits - logits.max())
                weights /= weights.sum()
                out[:, y, c] = sum(w * maps[:, p[0], p[1]] for w, p in zip(weights, beside, strict=True))
        maps = out
    return maps


def test_pamr_equation():
    rng = np.random.default_rng(1)
    maps, x = rng.standard_normal((2, 7, 9)), photo(3, (7, 9)).astype(np.float64)
    expected = pamr_by_hand(maps, x, 3, (1, 3))
    with jax.enable_x64():
        room = [(0, 4), (0, 2), (0, 0)]  # padding beyond the picture must not be looked at
        padded = np.pad(maps, [(0, 0), *room[:2]], constant_values=1e3), np.pad(x, room, constant_values=1e3)
        out = refinement.pamr(*map(jnp.asarray, padded), jnp.array([7, 9]), iterations=3, dilations=(1, 3))
        np.testing.assert_allclose(np.asarray(out)[:, :7, :9], expected, rtol=1e-9, atol=1e-9)


def test_pamr_brings_a_map_to_the_edges_of_the_picture():
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, 40:] = 255
    small = np.array([[[0, 0, 1, 1, 1, 1]] * 4], np.float32)  # its edge is at 32
    truth = np.arange(96) >= 40
    before = heatmaps.enlarge(small, (64, 96))[0] > 0.5
    after = np.asarray(refinement.refine("pamr", small, Image.fromarray(pixels), None))[0] > 0.5
    assert after.shape == (64, 96) and (after == truth).mean() > (before == truth).mean() == pytest.approx(88 / 96)


def test_large_pictures_are_refined_at_a_smaller_size(monkeypatch):
    monkeypatch.setattr(refinement, "ROOM", 4 * 2 * 30 * 40)
    maps, picture = np.random.default_rng(2).standard_normal((2, 3, 4)).astype(np.float32), Image.new("RGB", (160, 120))
    own = np.zeros((120, 160), int)
    for kind in ("pamr", "regions"):
        assert refinement.refine(kind, maps, picture, own).shape == (2, 30, 40)


@pytest.fixture(scope="module")
def model():
    return GEM.from_pretrained("assets/tiny_clip", size=160).model


def test_gem_with_regions(model):
    picture = photo(0, (70, 100))
    plain = GEM(model, size=160, templates=SAID)
    split = GEM(model, size=160, templates=SAID, refine="regions", regions=halves)
    maps, whole = split.maps(picture, ["cat", "dog"]), plain.maps(picture, ["cat", "dog"])
    assert maps.shape == (2, 70, 100)
    for side in (np.s_[:, :, :50], np.s_[:, :, 50:]):
        np.testing.assert_allclose(maps[side], np.broadcast_to(maps[side][:, :1, :1], maps[side].shape))
        np.testing.assert_allclose(maps[side][:, 0, 0], whole[side].mean((1, 2)), rtol=1e-4)
    heat = split([picture, photo(1)], [["cat", "dog"], ["cat"]])
    assert heat.shape == (2, 2, 160, 160) and not heat[1, 1].any()
    assert set(np.unique(np.round(heat, 5)).tolist()) == {0.0, 1.0}
    assert GEM(model, size=160, templates=SAID, refine="pamr").maps(picture, ["cat"]).shape == (1, 70, 100)
    with pytest.raises(UserError, match="refine 'sharp': expected one of pamr, regions"):
        GEM(model, size=160, refine="sharp")


def test_corrclip_keeps_to_regions(model):
    options = {"attention": "corrclip", "proxy": "assets/tiny_flamingo", "size": 160, "templates": SAID, "merge": 2.0}
    picture = photo(0, (160, 160))
    gem = GEM(model, regions=halves, **options)
    before = gem.maps(picture, ["cat"], window=160)
    found = gem.maps(picture, ["cat"])
    np.testing.assert_allclose(found, before, rtol=1e-5, atol=1e-6)
    one = GEM(model, regions=lambda key, image: np.zeros((1, 1), int), **options).maps(picture, ["cat"])
    assert np.abs(one - found).max() > 1e-3
    with pytest.raises(UserError, match="keeps to regions of a picture"):
        gem.image_tokens(np.zeros((1, 160, 160, 3), np.float32))
    with pytest.raises(UserError, match="merge -1"):
        GEM(model, regions=halves, **options | {"merge": -1})
