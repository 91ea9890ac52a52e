"""Sets of tensorflow-datasets, by the package itself: two that are kept here as it prepares them, and its own mocks."""

from __future__ import annotations

import pathlib
import pickle
import shutil
import sys

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from gem_jax.evaluation import sources
from input_pipeline.errors import UserError
from input_pipeline.loader import records
from input_pipeline.pasted import backgrounds
from input_pipeline.sets import registry
from input_pipeline.sets.bad_records import BadRecordLog
from input_pipeline.sets.reading import tfds_folder
from input_pipeline.sets.reading.label_maps import BACKGROUND, IGNORE
from pin_jax.programs import prepare
from tests.fixtures import make_tfds_sets

KEPT = make_tfds_sets.FOLDER
BOXES, LABELS = KEPT / "boxes" / "1.0.0", KEPT / "labels" / "1.0.0"


def skipping() -> BadRecordLog:
    return BadRecordLog("skip", lambda line: None)


def test_boxes_of_a_folder_and_of_a_name():
    for spec, data_dir in ((f"tfds:{BOXES}", ""), ("tfds:boxes", KEPT), ("tfds:boxes:test", KEPT)):
        bad_records = skipping()
        source = registry.queries(spec, data_dir, {}, bad_records)
        assert dict(bad_records.counts) == {"inverted box": 2} and source.counts[0] == ("in the set", 2, 4)
        first, second = records(source, [], bad_records)
        np.testing.assert_array_equal(first["image"], make_tfds_sets.picture(1))
        np.testing.assert_allclose(first["boxes"], [[32, 12, 64, 36], [0, 0, 32, 24]])
        assert first["names"] == ["dog", "cat"] and first["difficult"].tolist() == [False, True]
        assert first["path"] == "000001.jpg" and second["path"] == "000002.jpg"
    train = registry.queries(f"tfds:{BOXES}:train", "", {}, skipping())
    assert [record["path"] for record in records(train, [], skipping())] == ["000000.jpg"]
    assert "tensorflow" not in sys.modules


def test_it_pickles_for_workers():
    source = registry.load(f"tfds:{BOXES}", "", skipping())
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[1]["image"], source[1]["image"])
    assert isinstance(grain.MapDataset.source(again)[0]["image"], np.ndarray)


@pytest.mark.parametrize("background", [True, False])
def test_labels(background):
    config = ConfigDict(
        {"source": f"tfds:{LABELS}", "data_dir": "", "on_bad_record": "refuse", "images": 0, "background": background,
         "names": "readable", "select": {}, "split_by": ""}
    )  # fmt: skip
    source = sources.open_source(config, print)
    assert source.kind == "labels" and source.classes == ["dog", "cat"] and len(source) == 2
    assert source.phrases == [["dog"], ["cat"]] and source.records.background == background
    record = next(iter(source))
    zero = BACKGROUND if background else IGNORE
    assert record["labels"][0, 0] == IGNORE and record["labels"][1, 1] == 0 and record["labels"][-1, -1] == 1
    assert record["labels"][-1, 0] == zero
    np.testing.assert_array_equal(record["image"], make_tfds_sets.picture(0))


def test_backgrounds():
    source = backgrounds.load(f"tfds:{BOXES}:test", "all")
    assert len(source) == 2
    np.testing.assert_array_equal(np.asarray(source.photo(0)), make_tfds_sets.picture(1))
    drawn = pickle.loads(pickle.dumps(source)).draw(np.random.default_rng(0), 32)
    assert drawn.size == (32, 32) and drawn.mode == "RGB"
    with pytest.raises(UserError, match="none for split 'held_out'"):
        backgrounds.load(f"tfds:{BOXES}:test", "held_out")


def even(self, split, **_):
    """The package's random records, as many entries in all fields of an object as in the others."""
    return list(tfds.testing.mocking.RandomFakeGenerator(self.info.features, 4, constant_dynamic_shape=True))


@pytest.mark.parametrize("name", ["voc/2007", "lvis"])
def test_its_own_mocks_of_detection_sets(name):
    """Random pictures and boxes in the set's own features, as `download_and_prepare` would leave them."""
    bad_records = skipping()
    with tfds.testing.mock_data(as_data_source_fn=even):
        source = registry.load(f"tfds:{name}", "", bad_records)
        kept = list(records(source, [], bad_records))
    known = tfds.builder(name).info.features["objects"].feature["label"].names
    given = sum(len(record["objects"]["bbox"]) for record in even(tfds.builder(name), ""))
    assert kept and sum(len(r["names"]) for r in kept) + sum(bad_records.counts.values()) == given
    for record in kept:
        height, width = record["image"].shape[:2]
        assert set(record["names"]) <= set(known)
        assert (record["boxes"] >= 0).all() and (record["boxes"] <= (width, height, width, height)).all()


def test_fields_of_an_object_that_do_not_fit_are_refused():
    """The package's own mocks have as many boxes as they like, and other numbers of labels."""
    bad_records = skipping()
    with tfds.testing.mock_data(num_examples=4), pytest.raises(UserError, match="no image in"):
        registry.queries("tfds:voc/2007", "", {}, bad_records)
    assert dict(bad_records.counts) == {"unreadable record": 4}


def test_its_own_mock_of_a_segmentation_set():
    with tfds.testing.mock_data(num_examples=2):
        assert registry.kind("tfds:scene_parse150") == "labels"
        source = registry.load("tfds:scene_parse150", "", skipping())
        assert len(source.classes) == 150 and source.classes[0] == "wall" and len(source) == 2 and not source.background
        with pytest.raises(UserError, match="labels .*, image"):  # the mock's labels have another size than its picture
            source[0]


def coco_features() -> tfds.features.FeaturesDict:
    """Those of `coco/2017`, whose own code needs TensorFlow."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "objects": tfds.features.Sequence(
                {
                    "area": np.int64,
                    "bbox": tfds.features.BBoxFeature(),
                    "id": np.int64,
                    "is_crowd": np.bool_,
                    "label": tfds.features.ClassLabel(names=["person", "bicycle"]),
                }
            ),
        }
    )


def test_coco_is_read_without_its_code(tmp_path):
    row = {
        "image": tfds_folder.png(Image.fromarray(make_tfds_sets.picture(5))), "image/filename": "5.jpg", "image/id": 5,
        "objects/area": np.array([9]), "objects/bbox": np.array([[0.5, 0, 1, 0.5]], np.float32),
        "objects/id": np.array([77]), "objects/is_crowd": np.array([1]), "objects/label": np.array([1]),
    }  # fmt: skip
    with pytest.raises(UserError, match="tfds:coco/2017: cannot be opened"):
        registry.load("tfds:coco/2017", tmp_path, skipping())
    tfds_folder.write(tmp_path / "coco" / "2017", "coco", coco_features(), {"validation": [row]}, "COCO")
    (record,) = records(registry.load("tfds:coco/2017", tmp_path, skipping()), [], skipping())
    assert record["image_id"] == 5 and record["ids"] == [77] and record["crowd"].tolist() == [True]
    assert record["names"] == ["bicycle"]
    np.testing.assert_allclose(record["boxes"], [[0, 24, 32, 48]])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("tfds:no_such_set", "tfds:no_such_set: cannot be opened"),
        ("tfds:voc/2007", "not prepared in"),
        (f"tfds:{BOXES}:night", "no split night; it has train, test"),
        ("tfds:mnist", "not prepared in|neither objects"),
        ("tfds:", "data set 'tfds:': expected one of"),
    ],
)
def test_what_cannot_be_read_is_one_line(spec, said, tmp_path):
    with pytest.raises(UserError, match=said):
        registry.load(spec, tmp_path, skipping())


def test_a_set_with_neither_boxes_nor_labels_is_refused(tmp_path):
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 3))})
    row = {"image": tfds_folder.png(Image.fromarray(make_tfds_sets.picture(0)))}
    tfds_folder.write(tmp_path, "bare", features, {"test": [row]}, "")
    with pytest.raises(UserError, match="neither objects with bbox and label, nor labels with names .* it has image"):
        registry.load(f"tfds:{tmp_path / '1.0.0'}", "", skipping())


def test_a_shard_that_is_missing_is_one_line(tmp_path):
    shutil.copytree(BOXES, tmp_path / "1.0.0")
    next((tmp_path / "1.0.0").glob("boxes-test*")).unlink()
    with pytest.raises(UserError, match="record 0: cannot be read .*; prepare the set again"):
        registry.load(f"tfds:{tmp_path / '1.0.0'}", "", BadRecordLog("refuse"))


def test_prepare_writes_sets_that_the_package_reads(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for k in range(6):
        Image.fromarray(make_tfds_sets.picture(k)).save(photos / f"{k}.png")
    config = ConfigDict(
        {"cutouts": "twemoji", "backgrounds": f"folder:{photos}", "exclude": (), "side": 32, "background_side": 0,
         "tfds": True, "threads": 1, "on_bad_record": "refuse"}
    )  # fmt: skip
    prepare.run(config, tmp_path / "packed")
    made = tfds.builder_from_directory(str(tmp_path / "packed" / "tfds_backgrounds" / "1.0.0"))
    assert {split: info.num_examples for split, info in made.info.splits.items()} == {"held_out": 1, "train": 5}
    whole = backgrounds.load(f"packed:{tmp_path / 'packed' / 'backgrounds'}", "train")
    source = made.as_data_source(split="train")
    for k in range(5):
        np.testing.assert_array_equal(source[k]["image"], np.asarray(whole.photo(k)))
    again = backgrounds.load(f"tfds:{tmp_path / 'packed' / 'tfds_backgrounds' / '1.0.0'}:train", "all")
    np.testing.assert_array_equal(np.asarray(again.photo(2)), source[2]["image"])
    cut = tfds.builder_from_directory(str(tmp_path / "packed" / "tfds_cutouts" / "1.0.0"))
    record = cut.as_data_source(split="train")[0]
    assert record["image"].shape[-1] == 4 and record["image"].dtype == np.uint8
    assert cut.info.features["label"].int2str(int(record["label"])) == record["name"].decode()


def test_the_kept_sets_are_what_their_script_makes(tmp_path, monkeypatch):
    monkeypatch.setattr(make_tfds_sets, "FOLDER", tmp_path)
    make_tfds_sets.boxes()
    make_tfds_sets.labels()
    for path in pathlib.Path(KEPT).rglob("*.json"):
        assert (tmp_path / path.relative_to(KEPT)).read_text() == path.read_text()
