"""Hostile data: what is broken is skipped and counted by name, or refused in one line; never a crash in mid-run."""

from __future__ import annotations

import json
import pickle
import struct
import zlib

import grain
import numpy as np
import pytest
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.images import open_image
from input_pipeline.loader import batches, records
from input_pipeline.pasted import backgrounds
from input_pipeline.pasted.scenes import SceneConfig, Scenes
from input_pipeline.sets import coco, registry, voc
from input_pipeline.sets.bad_records import BadRecordLog, good_box, walk
from input_pipeline.transforms import Only, Squash
from tests.fixtures import layouts


def bomb(path, side: int = 30_000) -> None:
    """A PNG of side x side pixels in some hundred bytes: a true header, and the start of what would follow."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_001, 13_000, 30_000])
def test_a_picture_that_would_fill_the_memory(tmp_path, side):
    bomb(tmp_path / "large.png", side)
    with pytest.raises(UserError, match="too large|at most 100,000,000 are read") as caught:
        open_image(tmp_path / "large.png")
    assert caught.value.kind == "too large image"


def hurt(root):
    """COCO's layout, of whose four images one is a bomb, one is cut short and one is missing."""
    layouts.coco(root)
    pictures = root / "val2017"
    bomb(pictures / "000000000139.jpg")
    path = pictures / "000000000285.jpg"
    path.write_bytes(path.read_bytes()[:300])
    (pictures / "000000000632.jpg").unlink()
    return root


def test_bad_pictures_are_skipped_and_counted(tmp_path):
    said = []
    bad_records = BadRecordLog("skip", said.append)
    source = coco.instances(hurt(tmp_path), bad_records)
    for _ in range(2):  # what is met again counts once
        assert [record["image_id"] for record in walk(source, bad_records)] == [724]
    assert bad_records.counts == {"too large image": 1, "unreadable image": 1, "missing image": 1}
    assert bad_records.report() == "1 missing image, 1 too large image, 1 unreadable image"
    assert len(said) == 3 and all("\n" not in line and "skipped (" in line for line in said)
    assert [r["image_id"] for r in records(source, [Squash(32)], BadRecordLog("skip", said.append))] == [724]


def test_or_refused_in_one_line(tmp_path):
    source = coco.instances(hurt(tmp_path), BadRecordLog("refuse"))
    for read in (
        lambda bad_records: list(walk(source, bad_records)),
        lambda bad_records: list(records(source, [], bad_records)),
    ):
        with pytest.raises(UserError, match=r"000000000139\.jpg.*on_bad_record=skip") as caught:
            read(BadRecordLog("refuse"))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="config.on_bad_record 'maybe': expected skip or refuse"):
        BadRecordLog("maybe")


def test_a_zero_byte_picture(tmp_path):
    layouts.voc2007(tmp_path)
    (tmp_path / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000001.jpg").write_bytes(b"")
    bad_records = BadRecordLog("skip", lambda line: None)
    assert len(list(walk(voc.detection(tmp_path, bad_records), bad_records))) == 4 and bad_records.counts == {
        "unreadable image": 1
    }


def change(root, **entries):
    path = root / "annotations" / "instances_val2017.json"
    held = json.loads(path.read_text())
    for key, (index, value) in entries.items():
        if value is None:
            del held[key][index]
        else:
            held[key][index] = held[key][index] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(held))


@pytest.mark.parametrize("value, kind", [
    ({"bbox": [60, 40, -30, -30]}, "inverted box"), ({"bbox": [5, 5, 0, 10]}, "inverted box"),
    ({"bbox": [70, 5, 10, 10]}, "box outside"), ({"bbox": [-20, 5, 10, 10]}, "box outside"),
    ({"bbox": ["8", 4, 32, 36]}, "wrong type"), ({"bbox": [1, 2, 3]}, "wrong type"), ({"bbox": None}, "wrong type"),
    ({"bbox": [float("nan"), 4, 32, 36]}, "wrong type"), ({"bbox": [1e400, 4, 3, 3]}, "wrong type"),
    ({"bbox": {"x": 1}}, "wrong type"),
    ({"category_id": [18]}, "wrong type"), ({"category_id": 12}, "unknown category"),
    ({"image_id": 5}, "unknown image"), ({"image_id": {}}, "wrong type"), ({"iscrowd": "no"}, "wrong type"),
    (7, "wrong type"), ([], "wrong type"),
])  # fmt: skip
def test_bad_annotations(tmp_path, value, kind):
    layouts.coco(tmp_path)
    change(tmp_path, annotations=(0, value))
    bad_records = BadRecordLog("skip", lambda line: None)
    source = coco.instances(tmp_path, bad_records)
    assert dict(bad_records.counts) == {kind: 1} and len(source) == 4
    assert source.describe(0)["names"] == ["cat"]  # the dog is the bad one
    with pytest.raises(UserError, match="instances_val2017.json, annotation 0") as caught:
        coco.instances(tmp_path, BadRecordLog("refuse"))
    assert "\n" not in str(caught.value) and caught.value.kind == kind


@pytest.mark.parametrize("value, kind", [
    ({"width": "64"}, "wrong type"), ({"height": 0}, "wrong type"), ({"width": 10**12}, "wrong type"),
    ({"file_name": 5}, "wrong type"), ({"file_name": "../../secret.jpg"}, "bad file name"),
    ({"file_name": "/etc/passwd"}, "bad file name"), ({"id": 285}, "image id twice"), ({"id": None}, "wrong type"),
    ("x", "wrong type"),
])  # fmt: skip
def test_bad_images_of_a_json(tmp_path, value, kind):
    layouts.coco(tmp_path)
    change(tmp_path, images=(0, value))
    bad_records = BadRecordLog("skip", lambda line: None)
    source = coco.instances(tmp_path, bad_records)
    assert bad_records.counts[kind] == 1 and 139 not in [entry["image_id"] for entry in source.entries]


@pytest.mark.parametrize("text, words", [
    ("{", "not intact JSON"), ("[1, 2]", "a list; expected an object with images"), ("", "not intact JSON"),
    ('{"images": {}, "annotations": [], "categories": []}', "'images' is a dict; expected a list"),
    ('{"images": [], "annotations": [], "categories": []}', "no image in"), ("[" * 100_000, "not intact JSON"),
])  # fmt: skip
def test_a_file_that_is_no_coco_json(tmp_path, text, words):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        registry.load(f"coco:{tmp_path / 'mine.json'}", "", BadRecordLog("skip"))
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


def test_boxes_beyond_the_edge_are_cut():
    np.testing.assert_array_equal(good_box([-3, 5, 70.5, 40], 64, 48, "x"), [0, 5, 64, 40])


@pytest.mark.parametrize("text, kind", [
    ("<annotation><object>", "broken annotation"), ("", "broken annotation"),
    (layouts.voc_xml(layouts.voc_object("dog", (40, 40, 9, 5))), "inverted box"),
    (layouts.voc_xml(layouts.voc_object("dog", (100, 100, 109, 105))), "box outside"),
    (layouts.voc_xml(layouts.voc_object("dog", ("a", 4, 9, 5))), "wrong type"),
    (layouts.voc_xml(layouts.voc_object("", (1, 4, 9, 5))), "empty name"),
    (layouts.voc_xml("<object><name>dog</name></object>"), "wrong type"),
    ("<annotation></annotation>", "wrong type"),
])  # fmt: skip
def test_bad_xml(tmp_path, text, kind):
    layouts.voc2007(tmp_path)
    (tmp_path / "VOCdevkit" / "VOC2007" / "Annotations" / "000001.xml").write_text(text)
    bad_records = BadRecordLog("skip", lambda line: None)
    source = voc.detection(tmp_path, bad_records)
    assert dict(bad_records.counts) == {kind: 1}
    assert all("dog" not in entry["names"] for entry in source.entries)


def test_bad_references(tmp_path):
    refs = layouts.refcoco(tmp_path)
    refs[0]["ann_id"] = 1
    refs[1]["sentences"] = "left person"
    refs.append({"split": "testA"})
    refs.append(5)
    refs.append({**refs[2], "split": "testA"})
    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    bad_records = BadRecordLog("skip", lambda line: None)
    source = registry.load("refcoco", tmp_path, bad_records)
    assert len(source) == 1 and source[0]["query_text"] == ["right person"]
    assert dict(bad_records.counts) == {"unknown annotation": 1, "wrong type": 3}


def test_bad_points(tmp_path):
    layouts.openimages(tmp_path)
    path = tmp_path / "oidv7-val-annotations-point-labels.csv"
    with path.open("a") as file:
        file.write("0001eeaf4aed83f9,1.5,0,/m/01yrx,yes\n0001eeaf4aed83f9,left,0,/m/01yrx,yes\n0001eeaf4aed83f9\n")
    bad_records = BadRecordLog("skip", lambda line: None)
    assert len(registry.load("openimages", tmp_path, bad_records)[0]["points"]) == 2
    assert bad_records.counts["point outside"] == 1 and bad_records.counts["wrong type"] >= 1


def test_many_bad_records_are_not_all_said():
    said = []
    bad_records = BadRecordLog("skip", said.append)
    for k in range(1000):
        bad_records.add(UserError(f"image {k}: gone", "missing image"))
    assert (
        len(said) == 21 and bad_records.counts["missing image"] == 1000 and len(bad_records.summary()["lines"]) == 1000
    )


# --- training ---------------------------------------------------------------------------------------------------------


def broken_sources(root):
    """Two photographs and two cut-outs of a name, the first of each broken."""
    (root / "photos").mkdir()
    (root / "cutouts" / "cat").mkdir(parents=True)
    (root / "photos" / "0.jpg").write_bytes(b"")
    layouts.photo(root / "photos" / "1.jpg")
    (root / "cutouts" / "cat" / "0.png").write_bytes(b"no picture")
    Image.new("RGBA", (30, 20), "red").save(root / "cutouts" / "cat" / "1.png")
    return {"cutouts": f"folder:{root / 'cutouts'}", "backgrounds": f"folder:{root / 'photos'}", "split": "all"}


def test_training_goes_on_without_what_is_broken(tmp_path, capfd):
    config = SceneConfig(image_size=32, grid=8, **broken_sources(tmp_path))
    scenes = Scenes(config, 0, 20)
    pictures = [scenes[i]["image"] for i in range(20)]
    assert (
        scenes.bad_records.counts == {"unreadable image": 2} and "skipped (unreadable image)" in capfd.readouterr().err
    )
    again = Scenes(config, 0, 20)
    for i in (5, 0, 19):  # whoever asks, in whatever order
        np.testing.assert_array_equal(again[i]["image"], pictures[i])
    with pytest.raises(UserError, match=r"0\.(png|jpg).*cannot be read.*on_bad_record=skip"):
        strict = Scenes(config, 0, 20, "refuse")
        [strict[i] for i in range(20)]
    (tmp_path / "photos" / "1.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="backgrounds: none of 2 photographs can be read"):
        Scenes(config, 0, 20)[0]
    with pytest.raises(UserError, match=r"[01]\.jpg: cannot be read"):
        backgrounds.load(config.backgrounds).draw(np.random.default_rng(0), 32)


# --- one path ---------------------------------------------------------------------------------------------------------


def pictures_of(source, **options):
    iterator = batches(source, [Squash(32), Only(("image",))], 2, seed=3, **options)
    return iterator, [next(iterator)["image"] for _ in range(5)]


def test_photographs_batch_shard_and_resume_to_the_record(tmp_path):
    source = voc.detection(layouts.voc2007(tmp_path), BadRecordLog("refuse"))
    _, whole = pictures_of(source)
    _, threaded = pictures_of(source, threads=1)
    for a, b in zip(whole, threaded, strict=True):
        np.testing.assert_array_equal(a, b)
    iterator = batches(source, [Squash(32), Only(("image",))], 2, seed=3)
    next(iterator)
    state = iterator.get_state()
    resumed = batches(voc.detection(tmp_path, BadRecordLog("refuse")), [Squash(32), Only(("image",))], 2, seed=3)
    resumed.set_state(state)
    np.testing.assert_array_equal(next(resumed)["image"], whole[1])
    _, first = pictures_of(source, process=(0, 2))
    _, second = pictures_of(source, process=(1, 2))
    np.testing.assert_array_equal(whole[0], np.stack([first[0][0], second[0][0]]))
    assert [r["image_id"] for r in records(source, [], BadRecordLog(), process=(1, 2))] == ["000002", "000004"]
    assert isinstance(grain.MapDataset.source(source)[0]["image"], np.ndarray)


def test_unknown_sets_are_one_line(tmp_path):
    with pytest.raises(UserError, match="data set 'pvocc': expected one of pvoc, coco"):
        registry.load("pvocc", tmp_path, BadRecordLog())
    with pytest.raises(UserError, match="config.data_dir is empty"):
        registry.load("pvoc", "", BadRecordLog())
    with pytest.raises(UserError, match="does not exist; give it, --config.data_dir=FOLDER"):
        registry.load("pvoc", tmp_path / "none", BadRecordLog())
    with pytest.raises(UserError, match="'voc': has no boxes"):
        registry.queries("voc", tmp_path, {}, BadRecordLog())
