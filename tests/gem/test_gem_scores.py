"""Segmentation, points and boxes scored on maps made by hand, folders as sources, and the pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gem_jax import windows
from gem_jax.evaluation import boxes, figures, loop, on_device, points, segmentation, sources
from gem_jax.heatmaps import Enlarged
from input_pipeline.errors import UserError
from input_pipeline.pasted.scenes import SceneConfig, Scenes
from input_pipeline.sets.bad_records import BadRecordLog


class Known:
    """Stands for GEM: the maps of an image are given."""

    batch_size = 2

    def __init__(self, maps):
        self.given = maps

    def cut(self, images, window, stride, shorter, stitch, keys):
        sizes = [image.shape[:2] for image in images]
        return windows.Windows(np.stack(images), np.arange(len(images)), [], sizes, sizes, whole=True)

    def small_maps(self, cut, prompts, original):
        return [
            np.stack([self.given[int(pixels[0, 0, 0])][name] for name in own]).astype(np.float32)
            for pixels, own in zip(cut.pixels, prompts, strict=True)
        ]


def random_maps(rng, names, shape=(5, 7)):
    return Enlarged(rng.uniform(0.1, 0.3, (len(names), *shape)).astype(np.float32), (43, 70))


@pytest.mark.parametrize("smallest", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("form", ["names", "phrases", "background"])
def test_the_device_counts_as_numpy_does(form, smallest, monkeypatch):
    # The plain path is the reference: maps at full size on the host, one picture at a time.
    rng = np.random.default_rng(0)
    classes = ["cat", "dog", "sky"]
    said = None if form == "names" else [["cat", "kitten"], ["dog"], ["sky", "cloud", "blue"]]
    options = (40.0, (0.5, 0.0, 0.3, 0.4), said, ["wall", "floor"] if form == "background" else [], smallest)
    plain, device = (segmentation.Segmentation(classes, *options) for _ in range(2))
    monkeypatch.setattr(on_device.PixelCounts, "ROOM", 6000)  # read in between
    for _ in range(4):
        maps = random_maps(rng, plain.asked)
        true = rng.choice([0, 1, 2, segmentation.BACKGROUND, segmentation.IGNORE], maps.size)
        plain.add({"labels": true}, maps)
        device.count({"labels": true}, maps.small)
    ours, theirs = device.scores(), plain.scores()
    assert ours["threshold"] == theirs["threshold"]
    for key in ("mIoU", "mIoU_bg"):
        assert ours[key] == pytest.approx(theirs[key], abs=1e-6) and 0 < ours[key] < 1
    assert ours["sweep"] == pytest.approx(theirs["sweep"], abs=1e-6)


def test_refined_maps_of_many_sizes_share_a_program():
    rng = np.random.default_rng(3)
    plain, device = (segmentation.Segmentation(["cat", "dog", "sky"], 40.0, (0.3, 0.6)) for _ in range(2))
    made = None
    for size in ((70, 100), (99, 127), (128, 65)):
        maps = Enlarged(rng.uniform(0.1, 0.3, (3, *size)).astype(np.float32), size)  # as large as their picture
        true = rng.integers(-2, 3, size)
        plain.add({"labels": true}, maps)
        device.count({"labels": true}, maps.small)
        made = made or on_device.count_pixels._cache_size()
    assert on_device.count_pixels._cache_size() == made
    assert device.scores()["sweep"] == pytest.approx(plain.scores()["sweep"], abs=1e-6)
    points_plain, points_device = points.Points(), points.Points()
    rows = [
        {"name": "cat", "x": int(rng.integers(100)), "y": int(rng.integers(70)), "positive": True} for _ in range(9)
    ]
    maps = Enlarged(rng.uniform(0.1, 0.3, (1, 70, 100)).astype(np.float32), (70, 100))
    points_plain.add({"points": rows}, maps)
    points_device.count({"points": rows, "size": (70, 100)}, maps.small)
    assert points_plain.scores() == points_device.scores()


def test_points_are_read_on_the_device_as_on_the_host():
    rng = np.random.default_rng(1)
    plain, device = points.Points(), points.Points()
    for _ in range(3):
        rows = [
            {"name": str(rng.choice(["cat", "dog", "sky"])), "x": int(rng.integers(70)), "y": int(rng.integers(43)),
             "positive": bool(rng.integers(2))}
            for _ in range(21)
        ]  # fmt: skip
        record = {"points": rows}
        maps = random_maps(rng, plain.prompts(record))
        maps.small[0] *= rng.integers(2)  # one that may be constant
        plain.add(record, maps)
        device.count(record | {"size": maps.size}, maps.small)
    assert device.scores() == plain.scores() and 0 < plain.scores()["p-mIoU"] < 1


def test_windows_of_several_pictures_are_put_together():
    # A map that is a picture's own brightness comes back as that picture's, whatever windows it was seen through.
    rng = np.random.default_rng(2)
    photos = [Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)) for size in ((40, 64), (24, 24), (30, 90))]
    cut = windows.cut(photos, (16, 16), 8, window=16, stride=8, shorter=24)
    patches = cut.pixels.reshape(len(cut.pixels), 2, 8, 2, 8, 3).mean((2, 4, 5))[:, None]
    for photo, size, found in zip(photos, cut.grids, windows.joined(cut, patches), strict=True):
        whole = windows.resized(photo, (8 * size[0], 8 * size[1]))
        np.testing.assert_allclose(found[0], whole.reshape(size[0], 8, size[1], 8, 3).mean((1, 3, 4)), rtol=1e-6)


def image(index: int, shape=(4, 6)) -> np.ndarray:
    return np.full((*shape, 3), index, np.uint8)


def left(shape=(4, 6)) -> np.ndarray:
    out = np.zeros(shape)
    out[:, : shape[1] // 2] = 1
    return out


CAT = {"cat": left(), "dog": 1 - left()}


def test_miou_by_hand():
    # Image 0: truth is cat left, dog right: all right. Image 1: truth is dog everywhere: its left half is called cat.
    first = {"image": image(0), "names": ["cat", "dog"], "masks": np.stack([left(), 1 - left()]).astype(bool)}
    second = {"image": image(1), "labels": np.full((4, 6), 1)}
    scorer = segmentation.Segmentation(["cat", "dog", "sky"], scale=10, thresholds=(0.0,))
    maps = CAT | {"sky": np.full((4, 6), -1.0)}
    out = loop.evaluate(Known({0: maps, 1: maps}), [first, second], [scorer])
    assert out["mIoU"] == pytest.approx((12 / 24 + 24 / 36) / 2)  # sky is true nowhere and does not count


def test_background_by_threshold():
    truth = {"image": image(0), "names": ["cat"], "masks": left()[None].astype(bool)}
    # cat is sure on the left (probability 0.88), torn on the right (0.5).
    maps = {0: {"cat": left(), "dog": np.where(left() > 0, -1.0, 0.0)}}
    scorer = segmentation.Segmentation(["cat", "dog"], scale=1.0, thresholds=(0.0, 0.7, 0.95))
    out = loop.evaluate(Known(maps), [truth], [scorer])
    assert out["mIoU"] == 1.0 and out["mIoU_bg"] == 1.0 and out["threshold"] == 0.7
    assert out["sweep"]["0.0"] == pytest.approx((0.5 + 0) / 2) and out["sweep"]["0.95"] == pytest.approx((0 + 0.5) / 2)


def test_a_small_class_is_given_up():
    # Dog has a sixth of the classes' pixels: under a fifth, so its pixels are cat's, which is next there.
    dog = np.zeros((4, 6))
    dog[:, 5] = 1
    maps = {0: {"cat": 1 - dog, "dog": dog, "wall": np.full((4, 6), -1.0)}}
    truth = {"image": image(0), "labels": np.zeros((4, 6), int)}
    for smallest, expected in ((0.0, 20 / 24), (0.1, 20 / 24), (0.2, 1.0)):
        scorer = segmentation.Segmentation(["cat", "dog"], 1.0, (0.0,), background=["wall"], smallest=smallest)
        assert loop.evaluate(Known(maps), [truth], [scorer])["mIoU_bg"] == pytest.approx(expected)
    scorer = segmentation.Segmentation(["cat", "dog"], 100.0, (0.5,), background=["wall"], smallest=0.2)
    assert loop.evaluate(Known(maps), [truth], [scorer])["mIoU_bg"] == pytest.approx(20 / 24)  # it is no sure cat


def test_ignored_pixels_do_not_count():
    given = np.where(left() > 0, 0, segmentation.IGNORE)
    scorer = segmentation.Segmentation(["cat", "dog"], thresholds=(0.0,))
    out = loop.evaluate(Known({0: CAT}), [{"image": image(0), "labels": given}], [scorer])
    assert out["mIoU"] == 1.0 and out["mIoU_bg"] == 1.0


def test_point_miou_by_hand():
    rows = [
        {"name": "cat", "x": 0, "y": 0, "positive": True},  # hit
        {"name": "cat", "x": 1, "y": 3, "positive": False},  # false alarm
        {"name": "cat", "x": 5, "y": 2, "positive": True},  # missed
        {"name": "cat", "x": 4, "y": 1, "positive": False},  # rightly not
        {"name": "dog", "x": 5, "y": 0, "positive": True},  # hit
    ]
    scorer = points.Points()
    nothing = {"image": image(0), "points": []}
    out = loop.evaluate(Known({0: CAT}), [{"image": image(0), "points": rows}, nothing], [scorer])
    assert out == {"p-mIoU": pytest.approx((1 / 3 + 1) / 2), "points": 5}


def test_points_from_masks_lie_where_they_say():
    masks = np.stack([left((8, 8)), 1 - left((8, 8))]).astype(bool)
    rows = points.from_masks(np.random.default_rng(0), ["cat", "dog"], masks, each=4)
    assert len(rows) == 16
    for row in rows:
        own = masks[["cat", "dog"].index(row["name"])]
        assert own[row["y"], row["x"]] == row["positive"]
    twins = points.from_masks(np.random.default_rng(0), ["cat", "cat"], masks, each=4)
    assert len(twins) == 4 and all(row["positive"] for row in twins)  # no pixel is outside of both


def test_boxes_by_hand():
    record = {"image": image(0, (6, 6)), "query_text": ["cat", "dog"], "boxes": np.array([[0, 0, 3, 6], [3, 0, 6, 3]])}
    maps = {0: {"cat": left((6, 6)), "dog": 1 - left((6, 6))}}
    out = loop.evaluate(Known(maps), [record], [boxes.Boxes()])
    assert out["box mIoU"] == pytest.approx((1 + 0.5) / 2) and out["box"]["queries"] == 2


def test_scenes_are_called_by_tint_and_name():
    config = SceneConfig(image_size=64, split="all", background_split="held_out", pairs="held_out", with_masks=True,
                         look_slots=("colour",), look_share=1.0, objects=(2, 3))  # fmt: skip
    source = sources.NamedScenes(Scenes(config, 5, 4))
    assert len(source.classes) == 2 * 291 and len(set(source.classes)) == len(source.classes)
    for record in source:
        assert set(record["names"]) <= set(source.classes) and len(record["masks"]) == len(record["names"])
        assert {row["name"] for row in record["points"]} <= set(record["names"])
    train = sources.NamedScenes(Scenes(SceneConfig(**{**config.__dict__, "pairs": "train"}), 5, 2))
    assert not set(train.classes) & set(source.classes) and len(train.classes) == 6 * 291


def test_label_folder(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    Image.fromarray(image(0)).save(tmp_path / "images" / "a.png")
    with pytest.raises(UserError, match=r"classes\.txt: no such file; write one class a line"):
        sources.label_folder(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=r"1 images have no labels/NAME\.png, such as a"):
        sources.label_folder(tmp_path)
    given = np.array([[0, 1, 2, 255, 1, 1]] * 4, np.uint8)
    Image.fromarray(given).save(tmp_path / "labels" / "a.png")
    (record,) = sources.label_folder(tmp_path)
    back, skip = segmentation.BACKGROUND, segmentation.IGNORE
    np.testing.assert_array_equal(record["labels"][0], [back, 0, 1, skip, 0, 0])
    (record,) = sources.label_folder(tmp_path, background=False)
    np.testing.assert_array_equal(record["labels"][0], [skip, 0, 1, skip, 0, 0])
    Image.fromarray(given + 5).save(tmp_path / "labels" / "a.png")
    with pytest.raises(UserError, match=r"labels/a\.png: label 7 is none of the 2 classes"):
        list(sources.label_folder(tmp_path))


def test_point_folder(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(image(0)).save(tmp_path / "images" / "a.png")
    head = "ImageId,X,Y,Label,EstimatedYesNo,TextLabel\n"
    rows = [
        "a,0.5,0.99,/m/1,yes,Cat",
        "a,1.0,0,/m/1,no,Cat",
        "a,0,0,/m/2,no,Dog",
        "a,0,0,/m/1,unsure,Cat",
        "b,0,0,x,yes,",
    ]
    (tmp_path / "points.csv").write_text(head + "\n".join(rows) + "\n")
    (record,) = sources.point_folder(tmp_path, BadRecordLog())
    assert record["points"] == [
        {"name": "cat", "x": 3, "y": 3, "positive": True},
        {"name": "cat", "x": 5, "y": 0, "positive": False},
    ]
    (tmp_path / "points.csv").write_text("ImageId,X\n")
    with pytest.raises(UserError, match=r"points\.csv: columns missing: EstimatedYesNo, Label, Y"):
        sources.point_folder(tmp_path, BadRecordLog())


def test_pictures(tmp_path):
    heat = np.stack([left((8, 9)), 1 - left((8, 9))])
    sheet = figures.heat_maps(image(9, (20, 30)), ["cat", "dog"], heat, np.array([[0, 0, 9, 9], [3, 3, 8, 8]]))
    assert sheet._repr_png_()[:4] == b"\x89PNG"
    sheet.save(tmp_path / "heat.png")
    figures.segmentation(image(9), np.where(left() > 0, 0, 2), ["cat", "dog"]).save(tmp_path / "labels.png")
    both = {"clip": [left()] * 2, "gem": [1 - left()] * 2}
    figures.side_by_side([image(3), image(4)], ["cat", "dog"], both).save(tmp_path / "methods.png")
    for name in ("heat", "labels", "methods"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 200
