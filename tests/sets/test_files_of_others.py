"""Annotation files as other tools write them, and files that are none: right, counted, or refused in one line."""

from __future__ import annotations

import json
import os
import pickle

import pytest
from PIL import Image

from gem_jax.evaluation import sources
from input_pipeline.errors import UserError
from input_pipeline.sets import coco, openimages, refcoco, registry, voc
from input_pipeline.sets.bad_records import BadRecordLog
from input_pipeline.sets.reading import layout, pickles
from tests.fixtures import layouts

IMAGE = {"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}
BOX = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [4, 4, 30, 30]}
CAT = {"id": 7, "name": "cat"}


def read(root, images=(IMAGE,), annotations=(BOX,), categories=(CAT,), encoding="utf-8"):
    """What one's own JSON is read as: a row an image of (image id, names, ids, category ids, crowd), and the counts."""
    layouts.photo(root / "images" / "a.jpg")
    held = {"images": list(images), "annotations": list(annotations), "categories": list(categories)}
    (root / "set.json").write_text(json.dumps(held), encoding)
    log = BadRecordLog("skip", lambda line: None)
    found = coco.own(root / "set.json", log)
    rows = []
    for record in (found[k] for k in range(len(found))):
        rows.append((record["image_id"], record["names"], record["ids"], record["category_ids"], list(record["crowd"])))
    return rows, dict(log.counts)


RIGHT = ([(1, ["cat"], [1], [7], [False])], {})


@pytest.mark.parametrize("name", [
    "a.jpg", "images/a.jpg", "./a.jpg", "/home/somebody/data/a.jpg", "../images/a.jpg", "images\\a.jpg",
    "C:\\data\\images\\a.jpg", "\\\\server\\share\\a.jpg",
])  # fmt: skip
def test_file_names_of_other_tools(tmp_path, name):
    assert read(tmp_path, [IMAGE | {"file_name": name}]) == RIGHT


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret.jpg", "..\\secret.jpg", "images/../../secret.jpg", "\0"])
def test_file_names_that_lead_out_of_the_folder_are_refused(tmp_path, name):
    layouts.photo(tmp_path / "secret.jpg")
    top = tmp_path / "of" / "mine"  # pictures may also stand beside its folder
    with pytest.raises(UserError, match="set.json"):  # none is left
        read(top, [IMAGE | {"file_name": name}])
    log = BadRecordLog("skip", lambda line: None)
    with pytest.raises(UserError):
        coco.own(top / "set.json", log)
    assert log.counts == {"bad file name": 1}


def test_numbers_of_other_tools(tmp_path):
    floats = {k: float(v) if isinstance(v, int) else v for k, v in (IMAGE | BOX).items() if k != "id"}
    image = {k: floats[k] for k in ("width", "height", "file_name")} | {"id": 1.0}
    box = {k: floats[k] for k in ("image_id", "category_id", "bbox")} | {"id": 1.0, "iscrowd": None}
    assert read(tmp_path, [image], [box], [CAT | {"id": 7.0}]) == RIGHT
    assert read(tmp_path, encoding="utf-8-sig") == RIGHT and read(tmp_path, encoding="utf-16") == RIGHT


def test_categories_of_other_tools(tmp_path):
    # one name for two ids is asked for by that name; two names for one id are counted, and the first stays
    rows, counts = read(
        tmp_path, annotations=[BOX, BOX | {"id": 2, "category_id": 8}], categories=[CAT, CAT | {"id": 8}]
    )
    assert rows[0][1] == ["cat", "cat"] and rows[0][3] == [7, 8] and not counts
    assert read(tmp_path, categories=[CAT, CAT | {"name": "dog"}]) == (RIGHT[0], {"category id twice": 1})
    assert read(tmp_path, categories=[CAT, CAT]) == RIGHT


@pytest.mark.parametrize("changes, kind", [
    ({"name": ""}, "empty name"), ({"name": " \n"}, "empty name"), ({"name": "x" * 5000}, "too long name"),
    ({"name": "a <image>"}, "special token"), ({"name": "</s> cat"}, "special token"),
    ({"name": "<|endofchunk|>"}, "special token"),
    ({"name": 5}, "wrong type"), ({"id": 7.5}, "wrong type"), ({"id": None}, "wrong type"),
])  # fmt: skip
def test_names_that_cannot_be_asked_for_are_counted(tmp_path, changes, kind):
    rows, counts = read(tmp_path, categories=[CAT | changes])
    assert rows[0][1] == [] and counts[kind] == 1 and counts.get("unknown category", 0) == 1


def test_a_file_name_of_5000_letters(tmp_path):
    images = [IMAGE, IMAGE | {"id": 2, "file_name": "x" * 5000}]
    layouts.photo(tmp_path / "images" / "a.jpg")
    held = {"images": images, "annotations": [BOX], "categories": [CAT]}
    (tmp_path / "set.json").write_text(json.dumps(held))
    source = coco.own(tmp_path / "set.json", BadRecordLog("refuse"))
    with pytest.raises(UserError, match="File name too long") as caught:
        source[1]
    assert caught.value.kind == "missing image" and len(str(caught.value)) < 400


@pytest.mark.parametrize("text", [
    "", "{", "[]", "5", '{"images": 5}', "[" * 100_000, '{"images": [{"id": ' + "9" * 5000 + "}]}",
    '{"images": [5], "annotations": [null], "categories": ["x"]}',
])  # fmt: skip
def test_json_of_another_form_is_one_line(tmp_path, text):
    (tmp_path / "set.json").write_text(text)
    with pytest.raises(UserError, match="set.json"):
        coco.own(tmp_path / "set.json", BadRecordLog("skip", lambda line: None))


def fifo(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def test_what_is_no_file_is_never_waited_for(tmp_path):
    """A FIFO blocks whoever opens it until somebody writes; a folder cannot be read."""
    log = BadRecordLog("skip", lambda line: None)
    fifo(tmp_path / "a.json")
    with pytest.raises(UserError, match="a.json: is a FIFO, not a file"):
        registry.load(f"coco:{tmp_path / 'a.json'}", "", log)
    with pytest.raises(UserError, match="is a folder, not a file"):
        coco.load_json(tmp_path)
    layouts.voc2007(tmp_path)
    kit = tmp_path / "VOCdevkit" / "VOC2007"
    fifo(kit / "Annotations" / "000001.xml")
    fifo(kit / "JPEGImages" / "000002.jpg")
    source = voc.detection(tmp_path, log)
    with pytest.raises(UserError, match="000002.jpg: is a FIFO"):
        source[0]
    assert log.counts == {"no regular file": 1}
    fifo(kit / "ImageSets" / "Main" / "test.txt")
    with pytest.raises(UserError, match="list .*test.txt: is a FIFO"):
        voc.detection(tmp_path, log)
    fifo(tmp_path / "refs.p")
    with pytest.raises(UserError, match="refs.p: is a FIFO"):
        pickles.load(tmp_path / "refs.p")
    layouts.openimages(tmp_path)
    for name in ("oidv7-val-annotations-point-labels.csv", "oidv7-class-descriptions.csv"):
        fifo(tmp_path / name)
        with pytest.raises(UserError, match=f"{name}: is a FIFO"):
            openimages.points(tmp_path, log)
        (tmp_path / name).unlink()
        (tmp_path / name).write_text("ImageId,X,Y,Label,EstimatedYesNo\n")
    fifo(tmp_path / "classes.txt")
    with pytest.raises(UserError, match="classes.txt: is a FIFO"):
        sources.label_folder(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-99", "x-user-defined", "utf-7", "idna"])
def test_xml_of_an_unknown_encoding_is_counted(tmp_path, encoding):
    layouts.voc2007(tmp_path)
    path = tmp_path / "VOCdevkit" / "VOC2007" / "Annotations" / "000001.xml"
    path.write_text(f'<?xml version="1.0" encoding="{encoding}"?><annotation/>')
    log = BadRecordLog("skip", lambda line: None)
    assert len(voc.detection(tmp_path, log)) == 4 and sum(log.counts.values()) == 1


def test_lists_of_ids_that_lead_out_are_refused(tmp_path):
    layouts.write_list(tmp_path / "val.txt", ["a", "../../secret"])
    with pytest.raises(UserError, match="id '../../secret' leads out of the set's folder"):
        layout.listed(tmp_path / "val.txt")
    (tmp_path / "val.txt").write_bytes(b"\xef\xbb\xbf000001\n")  # a byte order mark is no part of an id
    assert layout.listed(tmp_path / "val.txt") == ["000001"]
    (tmp_path / "val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="val.txt: is no text in UTF-8"):
        layout.listed(tmp_path / "val.txt")


def test_an_empty_sentence_leaves_the_others(tmp_path):
    held = layouts.refcoco(tmp_path)
    refs = next(tmp_path.rglob("refs(unc).p"))
    count = sum(len(ref["sentences"]) for ref in held if ref["split"] == "testA")
    chosen = next(ref for ref in held if ref["split"] == "testA" and len(ref["sentences"]) > 1)
    chosen["sentences"][0]["sent"] = "  "
    refs.write_bytes(pickle.dumps(held))
    log = BadRecordLog("skip", lambda line: None)
    assert refcoco.expressions(tmp_path, log).objects() == count - 1 and log.counts == {"empty name": 1}


@pytest.mark.parametrize("raw, words", [
    (b"", "columns missing"), (b"\xff\xfe\x00\x01", "not intact CSV in UTF-8"),
    (b"ImageId,X\n", "columns missing: Est"),
    (b'ImageId,X,Y,Label,EstimatedYesNo\n"' + b"x" * 200_000, "not intact CSV|no point of any picture"),
    (b"ImageId,X,Y,Label,EstimatedYesNo\na\na,b\n", "no point of any picture"),
])  # fmt: skip
def test_points_of_another_form_are_one_line(tmp_path, raw, words):
    layouts.photo(tmp_path / "images" / "a.jpg")
    (tmp_path / "points.csv").write_bytes(raw)
    with pytest.raises(UserError, match=words):
        sources.point_folder(tmp_path, BadRecordLog("skip", lambda line: None))


def test_points_after_a_byte_order_mark(tmp_path):
    layouts.photo(tmp_path / "images" / "a.jpg")
    (tmp_path / "points.csv").write_bytes(
        b"\xef\xbb\xbfImageId,X,Y,Label,EstimatedYesNo\na,0.5,0.5,cat,yes\na,nan,0.5,cat,yes\na,0.5,0.5, ,yes\n"
    )
    log = BadRecordLog("skip", lambda line: None)
    assert sources.point_folder(tmp_path, log).rows[0][1] == [("cat", 0.5, 0.5, True)]
    assert log.counts == {"point outside": 1, "empty name": 1}


def test_classes_of_another_form(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / folder / "a.png")
    for raw, words in (
        (b"\n \n", "none in it"),
        (b"x" * 5000, "a name of 5,000 letters"),
        (b"\xff\xfe", "no text in UTF-8"),
    ):
        (tmp_path / "classes.txt").write_bytes(raw)
        with pytest.raises(UserError, match=words):
            sources.label_folder(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfcat\r\n")
    assert sources.label_folder(tmp_path).classes == ["cat"]


def test_former_names_of_modules_still_lead_to_them():
    import input_pipeline

    for name, now in input_pipeline.FORMER.items():
        with pytest.warns(DeprecationWarning, match=f"input_pipeline.{name} is now"):
            assert getattr(input_pipeline, name).__name__ == f"input_pipeline.{now}"
    from input_pipeline.records import Tally
    from input_pipeline.sets import selection

    assert Tally().report() == BadRecordLog().report()
    assert selection.rules({"most": 5}) == selection.rules({"max_annotations": 5})
