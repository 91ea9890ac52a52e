"""Opening what users hand in: odd pictures open upright and right, bad files are one clear line."""

import os
import pathlib
import socket

import numpy as np
import pytest
from PIL import Image

from input_pipeline import images
from input_pipeline.errors import UserError
from input_pipeline.images import open_image


def gradient() -> np.ndarray:
    """uint8[20, 30]: a ramp from left to right."""
    return np.tile(np.linspace(0, 255, 30).astype(np.uint8), (20, 1))


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such file; give the path of a PNG or JPEG"):
        open_image(tmp_path / "none.png")


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        for path, words in (
            (tmp_path, "is a folder, not a file; give the path of a PNG or JPEG"),
            (tmp_path / "fifo", "is a FIFO"),
            (tmp_path / "socket", "is a socket"),
            (pathlib.Path(os.devnull), "is a device"),
            (tmp_path / ("x" * 5000), "File name too long"),
            ("a\0b", "null"),
        ):
            with pytest.raises(UserError, match=words) as caught:
                open_image(path)
            assert len(str(caught.value)) < 400


def test_text_file(tmp_path):
    (tmp_path / "note.png").write_text("not a picture")
    with pytest.raises(UserError, match=r"note\.png: cannot be read as a picture"):
        open_image(tmp_path / "note.png")


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_truncated_file(tmp_path, kind):
    path = tmp_path / f"half.{kind}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"cannot be read as a picture .*; give an intact PNG or JPEG") as caught:
        open_image(path)
    assert "\n" not in str(caught.value)


def test_too_large_picture(tmp_path, monkeypatch):
    Image.new("L", (50, 40)).save(tmp_path / "large.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 1999)
    with pytest.raises(UserError, match="50 x 40 pixels; at most 1,999 are read"):
        open_image(tmp_path / "large.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 2000)
    assert open_image(tmp_path / "large.png").size == (50, 40)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1"])
def test_common_modes(tmp_path, mode):
    Image.fromarray(gradient()).convert(mode).save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")
    assert image.mode == "RGB" and image.size == (30, 20)
    assert np.asarray(image)[:, :3].mean() < 60 and np.asarray(image)[:, -3:].mean() > 195


def test_cmyk_jpeg(tmp_path):
    Image.fromarray(gradient()).convert("RGB").convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(np.asarray(open_image(tmp_path / "a.jpg"))[..., 0], gradient(), atol=6)


def test_sixteen_bit_png(tmp_path):
    Image.fromarray(gradient().astype(np.uint16) * 257).save(tmp_path / "a.png")
    np.testing.assert_allclose(np.asarray(open_image(tmp_path / "a.png"))[..., 0], gradient(), atol=1)
    assert np.asarray(open_image(tmp_path / "a.png", "RGBA"))[..., 3].min() == 255


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F"])
def test_paths_pil_images_and_arrays_are_seen_alike(tmp_path, mode):
    image = Image.fromarray(gradient())
    if mode == "I;16":
        image = Image.fromarray(gradient().astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(gradient().astype(np.float32) / 255)
    else:
        image = image.convert(mode)
    image.save(tmp_path / "a.tif")
    by_path = np.asarray(open_image(tmp_path / "a.tif"))
    np.testing.assert_array_equal(by_path, np.asarray(open_image(image)))
    np.testing.assert_array_equal(by_path, np.asarray(open_image(by_path)))
    np.testing.assert_allclose(by_path[..., 0], gradient() if mode != "1" else np.asarray(image) * 255, atol=1)


def test_arrays_that_are_pictures():
    rgb = np.asarray(open_image(gradient()))
    assert rgb.shape == (20, 30, 3)
    for array in (gradient()[..., None], np.dstack([rgb, rgb[..., :1]]), gradient().astype(np.uint16) * 257):
        np.testing.assert_array_equal(np.asarray(open_image(array)), rgb)


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3)), np.zeros((4, 4, 3), bool), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8),
              np.zeros((0, 4, 3), np.uint8), np.zeros((1, 4, 4, 3), np.uint8), None, "x"[:0]]
)  # fmt: skip
def test_arrays_that_are_none_are_refused(array):
    with pytest.raises(UserError, match="image"):
        open_image(array)


@pytest.mark.parametrize("values", [(0, 1.5e4), (-1, 1), (0, np.nan), (0, np.inf)])
def test_floating_point_beyond_its_ranges_is_refused(tmp_path, values):
    Image.fromarray(np.tile(np.linspace(*values, 30, dtype=np.float32), (20, 1))).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="expected 0 to 1 or 0 to 255, or 16 bits: scale it"):
        open_image(tmp_path / "a.tif")


def test_floating_point_up_to_255_is_rounded():
    image = Image.fromarray(gradient().astype(np.float32) + 0.2)
    np.testing.assert_array_equal(
        np.asarray(open_image(image.point(lambda v: v * 0.9)))[..., 1], np.round((gradient() + 0.2) * 0.9)
    )


def test_exif_rotation(tmp_path):
    image = Image.fromarray(gradient())
    exif = image.getexif()
    exif[0x0112] = 6  # turn by a quarter, clockwise
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = np.asarray(open_image(tmp_path / "a.jpg"))
    assert upright.shape == (30, 20, 3)
    np.testing.assert_allclose(upright[..., 0], np.rot90(gradient(), -1), atol=6)
    with Image.open(tmp_path / "a.jpg") as opened:  # a PIL image is turned as its file is
        np.testing.assert_array_equal(np.asarray(open_image(opened)), upright)
    np.testing.assert_array_equal(np.asarray(open_image(open_image(tmp_path / "a.jpg"))), upright)  # and once
