"""Sets of labels and points in their published layouts; names; mIoU beside scikit-learn's."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from gem_jax.evaluation import sources
from gem_jax.evaluation.segmentation import BACKGROUND, IGNORE, Confusion, Segmentation
from input_pipeline.errors import UserError
from input_pipeline.pasted.names import members
from input_pipeline.sets import lvis, names, registry
from input_pipeline.sets.bad_records import BadRecordLog
from tests.fixtures import layouts


def labels_of(record) -> list[int]:
    """The labels of the four quarters."""
    found = record["labels"]
    height, width = found.shape
    assert record["image"].shape == (height, width, 3)
    return [int(found[y, x]) for y in (2, height - 3) for x in (2, width - 3)]


def load(spec, root):
    return registry.load(spec, root, BadRecordLog("refuse"))


def test_voc2012(tmp_path):
    source = load("voc", layouts.voc2012(tmp_path))
    assert len(source) == 2 and source.classes[11] == "dog" and len(source.classes) == 20
    assert labels_of(source[0]) == [BACKGROUND, 11, 7, IGNORE]
    assert labels_of(load("voc", tmp_path / "VOCdevkit")[1]) == [BACKGROUND, 11, 7, IGNORE]


@pytest.mark.parametrize("spec, zero", [("context", IGNORE), ("context60", BACKGROUND)])
def test_context_as_png(tmp_path, spec, zero):
    top = tmp_path / "VOC2010"
    layouts.write_list(top / "ImageSets" / "SegmentationContext" / "val.txt", ["2008_000002"])
    layouts.photo(top / "JPEGImages" / "2008_000002.jpg")
    layouts.grey(top / "SegmentationClassContext" / "2008_000002.png", layouts.quarters(0, 1, 59, 23))
    assert labels_of(load(spec, tmp_path)[0]) == [zero, 0, 58, 22]


def test_context_as_its_makers_give_it(tmp_path):
    from scipy.io import savemat

    top = tmp_path / "VOC2010"
    layouts.photo(top / "JPEGImages" / "2008_000002.jpg")
    layouts.write_list(top / "ImageSets" / "Segmentation" / "val.txt", ["2008_000002", "2008_000003"])
    (top / "trainval").mkdir()
    savemat(top / "trainval" / "2008_000002.mat", {"LabelMap": layouts.quarters(458, 2, 300, 19).astype(np.uint16)})
    with pytest.raises(UserError, match=r"nothing of it in .*labels\.txt"):
        load("context", tmp_path)
    ids = {**{name: 400 + k for k, name in enumerate(names.table("context").column("published"))}, "aeroplane": 2}
    lines = [f"{number}: {name}" for name, number in ids.items()] + ["300: accordion"]
    (top / "labels.txt").write_text("\n".join(lines))
    source = load("context", tmp_path)
    assert len(source) == 1 and labels_of(source[0]) == [58, 0, IGNORE, IGNORE]


def test_ade20k(tmp_path):
    top = tmp_path / "ADEChallengeData2016"
    layouts.photo(top / "images" / "validation" / "ADE_val_00000001.jpg")
    layouts.grey(top / "annotations" / "validation" / "ADE_val_00000001.png", layouts.quarters(0, 1, 150, 13))
    source = load("ade20k", tmp_path)
    assert labels_of(source[0]) == [IGNORE, 0, 149, 12] and len(source.classes) == 150


def test_coco_stuff(tmp_path):
    layouts.photo(tmp_path / "val2017" / "000000000139.jpg")
    path = tmp_path / "stuffthingmaps_trainval2017" / "val2017" / "000000000139.png"
    layouts.grey(path, layouts.quarters(0, 12, 181, 255))
    source = load("coco_stuff", tmp_path)
    assert labels_of(source[0]) == [0, 11, 170, IGNORE]
    assert [source.classes[k] for k in (0, 11, 170)] == ["person", "stop sign", "wood"]
    layouts.grey(path, layouts.quarters(0, 11, 181, 255))  # 11 is a street sign, of which no picture has any
    with pytest.raises(UserError, match="label 11 is none of the 171 classes"):
        source[0]


def test_coco_object_paints_small_masks_over_large_ones(tmp_path):
    held = layouts.coco(tmp_path)
    source = load("coco_object", tmp_path)
    found = source[1]["labels"]
    assert source.classes[56] == "chair" and len(source.classes) == 80
    assert found[2, 2] == 0 and found[12, 15] == 56 and found[40, 40] == BACKGROUND  # a crowd, a chair on it
    assert (source[3]["labels"] == BACKGROUND).all()
    ready = tmp_path / "annotations" / "val2017"
    layouts.grey(ready / "000000000139_instanceTrainIds.png", layouts.quarters(0, 1, 80, 255))
    assert labels_of(load("coco_object", tmp_path)[0]) == [BACKGROUND, 0, 79, IGNORE]
    held["annotations"][0]["segmentation"] = [[1, 2, 3]]
    (ready / "000000000139_instanceTrainIds.png").unlink()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(held))
    with pytest.raises(UserError, match="mask cannot be read .*a polygon has fewer than 3 points"):
        load("coco_object", tmp_path)[0]


@pytest.mark.parametrize("kind, values, wanted", [
    ("labelIds", (7, 33, 0, 24), [0, 18, IGNORE, 11]), ("labelTrainIds", (0, 18, 255, 11), [0, 18, IGNORE, 11]),
])  # fmt: skip
def test_cityscapes(tmp_path, kind, values, wanted):
    stem = "frankfurt_000000_000294"
    layouts.photo(tmp_path / "leftImg8bit" / "val" / "frankfurt" / f"{stem}_leftImg8bit.png")
    layouts.grey(tmp_path / "gtFine" / "val" / "frankfurt" / f"{stem}_gtFine_{kind}.png", layouts.quarters(*values))
    assert labels_of(load("cityscapes", tmp_path)[0]) == wanted


def test_openimages_points(tmp_path):
    source = load("openimages", layouts.openimages(tmp_path))
    (record,) = source
    assert record["points"] == [
        {"name": "cat", "x": 32, "y": 47, "positive": True},
        {"name": "cat", "x": 63, "y": 0, "positive": False},
    ]


@pytest.mark.parametrize("drawn_on", ["stored", "upright"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_rotated_photograph_and_its_labels_go_together(tmp_path, orientation, drawn_on):
    """The square stands where the labels say, whichever of the two they were drawn on."""
    if drawn_on == "upright" and orientation == 3:
        pytest.skip("cannot be told by the size: such labels are those of the stored pixels")
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[4:20, 40:60] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    image.save(tmp_path / "images" / "a.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "images" / "a.jpg") as opened:
        seen = opened if drawn_on == "stored" else ImageOps.exif_transpose(opened)
        Image.fromarray((np.asarray(seen)[..., 0] > 127).astype(np.uint8)).save(tmp_path / "labels" / "a.png")
    (tmp_path / "classes.txt").write_text("square\n")
    record = sources.label_folder(tmp_path)[0]
    np.testing.assert_array_equal(record["labels"] == 0, record["image"][..., 0] > 127)


def test_bad_labels_are_one_line(tmp_path):
    top = layouts.voc2012(tmp_path) / "VOCdevkit" / "VOC2012" / "SegmentationClass"
    source = load("voc", tmp_path)
    layouts.palette(top / "2007_000033.png", layouts.quarters(0, 21, 8, 255))
    with pytest.raises(UserError, match=r"SegmentationClass/2007_000033\.png: label 21 is none of the 20 classes"):
        source[0]
    layouts.palette(top / "2007_000033.png", layouts.quarters(0, 1, 2, 3)[:20])
    with pytest.raises(UserError, match=r"\(20, 64\); image .*: 64 x 48 pixels, annotated at 64 x 20"):
        source[0]
    layouts.photo(top / "2007_000033.png")
    with pytest.raises(UserError, match="a picture of mode RGB; expected a palette or grey PNG"):
        source[0]
    Image.fromarray(layouts.quarters(0, 1, 2, 255).astype(np.uint16)).save(top / "2007_000033.png")  # 16 bits
    assert labels_of(source[0]) == [BACKGROUND, 0, 1, IGNORE]


@pytest.mark.parametrize("name, rows", [("voc", 20), ("context", 59), ("ade20k", 150), ("coco", 80),
                                        ("coco_stuff", 171), ("cityscapes", 19), ("lvis", 1203)])  # fmt: skip
def test_names(name, rows):
    table = names.table(name)
    assert len(table.rows) == rows and all(len(row) == len(table.columns) for row in table.rows)
    for column in set(table.columns) & {"published", "readable", "name"}:
        assert len(set(table.column(column))) == rows
    with pytest.raises(UserError, match="names 'latin': expected one of"):
        table.column("latin")


def test_names_as_papers_rename_them():
    phrases, background = names.phrases("voc", "sclip")
    assert phrases[3] == ["ship"] and "person in jeans" in phrases[14] and "sky" in background
    assert names.phrases("voc", "readable") == ([[row[1]] for row in names.table("voc").rows], [])
    assert names.table("coco_stuff").column("readable")[90:93] == ["ceiling", "tile ceiling", "cloth"]


def test_lvis_groups():
    coco, voc = lvis.group("@coco"), lvis.group("@voc")
    assert {"airplane", "necktie", "cow", "flowerpot", "television set"} <= coco and 70 <= len(coco) <= 80
    assert {"airplane", "sofa", "train", "dining table"} <= voc and "motor scooter" not in voc | coco
    assert members(("@voc", "water_bottle_(x)")) == voc | {"water bottle"}
    assert len(lvis.categories()) == 1203 and lvis.categories()[:2] == ("aerosol can", "air conditioner")
    with pytest.raises(UserError, match="exclude '@moon': expected a name, or a group: @coco, @voc"):
        lvis.group("@moon")


# --- scores -----------------------------------------------------------------------------------------------------------


def test_miou_is_scikit_learns():
    from sklearn.metrics import jaccard_score

    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 5, (2, 4000))
    predicted = np.where(rng.random(4000) < 0.6, true, predicted)
    confusion = Confusion(5)
    for part in range(4):
        confusion.add(true[part::4], predicted[part::4])
    wanted = jaccard_score(true, predicted, average=None)
    np.testing.assert_allclose(confusion.iou(), wanted, atol=1e-12)
    assert confusion.mean() == pytest.approx(jaccard_score(true, predicted, average="macro"), abs=1e-12)


def test_segmentation_scores_are_scikit_learns():
    """From maps to mIoU with background, by another way: softmax, threshold, jaccard_score over all pixels."""
    from scipy.special import softmax
    from sklearn.metrics import jaccard_score

    rng = np.random.default_rng(1)
    scorer = Segmentation(["cat", "dog", "sky"], scale=4.0, thresholds=(0.5,))
    seen = []
    for _ in range(3):
        maps = rng.normal(0, 0.5, (3, 8, 9)).astype(np.float32)
        given = rng.integers(-2, 3, (8, 9))
        scorer.add({"labels": given}, maps)
        chance = softmax(4.0 * maps, axis=0)
        answer = np.where(chance.max(0) < 0.5, 3, maps.argmax(0))
        truth = np.where(given == BACKGROUND, 3, given)
        seen.append((truth[given != IGNORE], answer[given != IGNORE]))
    true, predicted = (np.concatenate(part) for part in zip(*seen, strict=True))
    out = scorer.scores()
    assert out["mIoU_bg"] == pytest.approx(jaccard_score(true, predicted, average="macro"), abs=1e-9)


def test_several_phrases_a_class_and_phrases_of_background():
    maps = np.array([[[0.1, 0.9]], [[0.8, 0.1]], [[0.3, 0.2]], [[0.2, 0.95]]], np.float32)  # dog, puppy, cat, sky
    scorer = Segmentation(["dog", "cat"], 1.0, (0.0,), [["dog", "puppy"], ["cat"]], ["sky"])
    assert scorer.prompts({}) == ["dog", "puppy", "cat", "sky"]
    scorer.add({"labels": np.array([[0, BACKGROUND]])}, maps)
    out = scorer.scores()
    assert out["mIoU"] == 1.0 and out["mIoU_bg"] == 1.0
