"""Opening what users hand in: odd pictures open upright and right, bad files are one clear line."""

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


def test_folder_in_place_of_a_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        open_image(tmp_path)


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


def test_exif_rotation(tmp_path):
    image = Image.fromarray(gradient())
    exif = image.getexif()
    exif[0x0112] = 6  # turn by a quarter, clockwise
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = np.asarray(open_image(tmp_path / "a.jpg"))
    assert upright.shape == (30, 20, 3)
    np.testing.assert_allclose(upright[..., 0], np.rot90(gradient(), -1), atol=6)
