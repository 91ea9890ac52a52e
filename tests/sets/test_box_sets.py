"""Sets of boxes in their published layouts: VOC, COCO, LVIS, RefCOCO, one's own; and the selection rules."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.sets import coco, lvis, refcoco, registry, selection, voc
from input_pipeline.sets.bad_records import BadRecordLog
from input_pipeline.transforms import Squash, unsquash
from tests.fixtures import layouts


def refusing() -> BadRecordLog:
    return BadRecordLog("refuse")


def test_voc2007(tmp_path):
    layouts.voc2007(tmp_path)
    source = voc.detection(tmp_path, refusing())
    assert len(source) == 5 and [len(source.describe(i)["names"]) for i in range(5)] == [1, 2, 4, 0, 2]
    one = source[0]
    np.testing.assert_array_equal(one["boxes"], [[8, 4, 40, 40]])  # counted from 1, ends inclusive
    assert one["image"].dtype == np.uint8 and one["image"].shape == (48, 64, 3) and one["size"] == (64, 48)
    assert one["names"] == ["dog"] and one["image_id"] == "000001"
    two = source[1]
    assert two["names"] == ["person", "tvmonitor"]  # the head is a part, no object
    assert two["difficult"].tolist() == [False, True] and two["boxes"][1].tolist() == [9.5, 9, 30, 30]
    assert source[3]["boxes"].shape == (0, 4)
    for root in (tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2007"):
        assert len(voc.detection(root, refusing())) == 5
    with pytest.raises(UserError, match=r"VOC2007 test: nothing of it in .*expected there one of VOC2007/ImageSets"):
        voc.detection(tmp_path / "VOCdevkit" / "VOC2007" / "Annotations", refusing())


def test_coco_and_its_mask_forms(tmp_path):
    layouts.coco(tmp_path)
    source = coco.instances(tmp_path, refusing(), with_masks=True)
    assert [source.describe(i)["names"] for i in range(4)] == [["dog", "cat"], ["person", "chair"], ["bottle"] * 5, []]
    for index in (0, 1):
        record = source[index]
        for (x1, y1, x2, y2), mask in zip(record["boxes"].astype(int), record["masks"], strict=True):
            wanted = layouts.box_mask(x1, y1, x2 - x1, y2 - y1)
            np.testing.assert_array_equal(mask, wanted)
    assert source[1]["crowd"].tolist() == [True, False] and source[1]["ids"][0] == 900100000285
    assert source[3]["masks"].shape == (0, 48, 64)
    assert "masks" not in coco.instances(tmp_path, refusing())[0]


def test_own_json_finds_its_images(tmp_path):
    layouts.coco(tmp_path, "mine", file_prefix="mine/")
    path = tmp_path / "annotations" / "instances_mine.json"
    assert registry.load(f"coco:{path}", "", refusing())[0]["image"].shape == (48, 64, 3)
    held = json.loads(path.read_text())
    (tmp_path / "set").mkdir()
    for image in held["images"]:
        image["file_name"] = "größe " + image["file_name"].split("/")[1]
        shutil.copy(tmp_path / "mine" / image["file_name"][6:], tmp_path / "set" / image["file_name"])
    (tmp_path / "boxes.json").write_text(json.dumps(held), "utf-8")
    record = registry.load(f"coco:{tmp_path / 'boxes.json'}", tmp_path / "set", refusing())[0]
    assert record["path"].name.startswith("größe ")
    with pytest.raises(UserError, match=r"images .*nowhere: no such folder"):
        registry.load(f"coco:{path}", tmp_path / "nowhere", refusing())


def test_lvis_names_are_normalised_and_images_found_by_url(tmp_path):
    source = registry.load("lvis", layouts.lvis(tmp_path), refusing())
    assert [source[i]["names"] for i in range(2)] == [["bus"], ["aerosol can"]]
    assert [source[i]["path"].parent.name for i in range(2)] == ["val2017", "train2017"]


@pytest.mark.parametrize("by", ["unc", "google"])
def test_refcoco(tmp_path, by):
    layouts.refcoco(tmp_path, by=by)
    source = registry.load("refcoco", tmp_path, refusing(), by)
    assert len(source) == 2
    first = source[0]
    assert first["query_text"] == ["brown dog", "dog at the café"] and first["names"] == ["dog", "dog"]
    assert first["ids"] == [3007, 3007] and first["sentences"][1] == {"sent_id": 11, "ref_id": 1, "ann_id": 3007}
    np.testing.assert_array_equal(first["boxes"][0], [4, 4, 34, 44])
    assert registry.load("refcoco:train", tmp_path, refusing(), by)[0]["query_text"] == ["right person"]
    with pytest.raises(UserError, match=r"refcoco testB .*: no such split; refs.* has testA, train"):
        registry.load("refcoco:testB", tmp_path, refusing(), by)


@pytest.mark.parametrize("which", ["refcoco+", "refcocog"])
def test_refcoco_plus_and_g(tmp_path, which):
    layouts.refcoco(tmp_path, which, refcoco.SETS[which], "val")
    assert len(registry.load(f"{which}:val", tmp_path, refusing())) == 2


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_that_calls_something_is_refused_unrun(tmp_path):
    layouts.refcoco(tmp_path)
    path = tmp_path / "refcoco" / "refs(unc).p"
    whole = path.read_bytes()
    path.write_bytes(pickle.dumps([Evil(str(tmp_path / "made"))]))
    with pytest.raises(UserError, match=r"its pickle wants (io|_io)\.open.*nothing of it was run"):
        registry.load("refcoco", tmp_path, refusing())
    assert not (tmp_path / "made").exists()
    path.write_bytes(whole[:-40])
    with pytest.raises(UserError, match=r"refs\(unc\)\.p: broken"):
        registry.load("refcoco", tmp_path, refusing())
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="a dict; expected a list of references"):
        registry.load("refcoco", tmp_path, refusing())


# --- selection --------------------------------------------------------------------------------------------------------


def chosen(root, spec="pvoc", **options):
    bad_records = refusing()
    return selection.select(
        registry.load(spec, root, bad_records), selection.Rules(**options).steps({"tvmonitor": "tv monitor"})
    )


def said(source):
    return [source.describe(i)["query_text"] for i in range(len(source))]


def test_the_papers_rule_is_the_default(tmp_path):
    source = chosen(layouts.voc2007(tmp_path))
    assert said(source) == [
        ["dog"],
        ["person", "tvmonitor"],
        ["cat", "cat"],
    ]  # difficult ones stay; 4 objects are too many
    assert source.counts == [("in the set", 5, 9), ("MaxAnnotations", 4, 5), ("WithObjects", 3, 5)]


def test_the_other_rules(tmp_path):
    root = layouts.voc2007(tmp_path / "voc")
    assert said(chosen(root, difficult=False))[1] == ["person"]
    assert said(chosen(root, max_annotations=0))[2] == ["cat"] * 4
    assert said(chosen(root, names="readable"))[1] == ["person", "tv monitor"]
    one = chosen(root, one_per_class=True)
    assert said(one)[2] == ["cat"] and one.describe(2)["boxes"].tolist() == [[19, 9, 60, 48]]
    other = {
        name
        for i in range(20)
        for name in selection.Synonyms(i).map(one.describe(0) | {"query_text": ["tv"]})["query_text"]
    }
    assert other == {"tv", *lvis.synonyms()["tv"]} and "television set" in other
    layouts.coco(tmp_path)
    assert said(chosen(tmp_path, "coco", crowd=False))[1] == ["chair"]
    known = selection.select(registry.load("pvoc", root, refusing()), selection.Rules().steps({}, {"dog"}))
    assert said(known) == [["dog"]]
    with pytest.raises(UserError, match=r"no query is left by the selection rules \(.*Known 0"):
        selection.select(registry.load("pvoc", root, refusing()), selection.Rules().steps({}, {"zebra"}))
    with pytest.raises(UserError, match="selection rule 'moist': expected one of crowd"):
        selection.rules({"moist": 3})


def test_masks_follow_the_selection(tmp_path):
    layouts.coco(tmp_path)
    source = coco.instances(tmp_path, refusing(), with_masks=True)
    record = selection.select(source, [selection.DropCrowd(), selection.MaxAnnotations(2), selection.WithObjects()])[1]
    assert record["names"] == ["chair"] and record["masks"].shape == (1, 48, 64)
    np.testing.assert_array_equal(record["masks"][0], layouts.box_mask(10, 10, 20, 30))


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_annotations_decide_the_orientation(tmp_path):
    """A picture that EXIF turns is turned, unless its boxes were made on it as it is stored."""
    held = layouts.coco(tmp_path)
    path = tmp_path / "val2017" / "000000000139.jpg"
    image = Image.new("RGB", (48, 64), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    assert coco.instances(tmp_path, refusing())[0]["image"].shape == (48, 64, 3)  # annotated upright: turned
    held["images"][0].update({"width": 48, "height": 64})
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(held))
    assert coco.instances(tmp_path, BadRecordLog())[0]["image"].shape == (64, 48, 3)  # annotated as stored: not turned


def test_squash_scales_boxes_and_back(tmp_path):
    record = Squash(224).map(voc.detection(layouts.voc2007(tmp_path), refusing())[0])
    assert record["image"].shape == (224, 224, 3)
    np.testing.assert_allclose(record["boxes"], [[28, 4 * 224 / 48, 140, 40 * 224 / 48]], rtol=1e-6)
    np.testing.assert_allclose(unsquash(record["boxes"], 224, record["size"]), [[8, 4, 40, 40]], rtol=1e-6)
