"""Evaluation on published sets from the outside: PIN's and GEM's runs, what they write, and configs that compose."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs import gem_clip, pin_blip2, pin_flamingo
from configs.lib import schema
from gem_jax import programs as gem_runs
from input_pipeline.errors import UserError
from pin_jax import adapters, evaluate
from pin_jax.methods import METHODS
from pin_jax.programs import pin
from pin_jax.vlm import load_vlm
from tests.fixtures import layouts
from tests.fixtures.small import write_vlm
from tests.fixtures.tiny_blip2 import write as write_blip2
from tests.small.test_clip import folder as clip_folder  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def vlm_folder(tmp_path_factory):
    return write_vlm(tmp_path_factory.mktemp("vlm"))


def pin_config(folder, insert, variant, make=pin_flamingo, **changes):
    """A config whose variant evaluates, on a small model with an insert that is only initialised."""
    config = make.get_config(variant)
    config.update({"vlm": str(folder), "insert": str(insert), "dtype": "float32", "remat": "none"} | changes)
    config.eval.update({"batch_size": 8, "decoder": "greedy"})
    if not insert.exists():
        vlm, _ = load_vlm(config.vlm)
        params = METHODS["pin"](vlm.model.config, **config.method_options).init(jax.random.key(0))
        adapters.save(insert, params, config, vlm)
    return config


@pytest.fixture(scope="module")
def pvoc(vlm_folder, tmp_path_factory):
    """What a run of the small model on VOC2007 leaves."""
    root = tmp_path_factory.mktemp("pvoc")
    layouts.voc2007(root)
    config = pin_config(vlm_folder, root / "insert.safetensors", "tiny,eval=pvoc", data_dir=str(root))
    assert config.run == "evaluate" and config.eval.images == 0 and config.eval.select.max_annotations == 3
    pin.run(config, root / "out")
    return root / "out"


def test_pin_on_voc(pvoc):
    results = json.loads((pvoc / "results.json").read_text())
    data = results["data"]
    assert data["set"] == "VOC2007 test" and data["images"] == 2
    # In the set; at most 3; that the small model has words for; something left.
    assert [row["objects"] for row in data["selection"]] == [9, 5, 3, 3]
    assert results["pin"]["queries"] == 3 and "unparsed_M" in results["pin"]
    with Image.open(pvoc / "predictions.png") as sheet:
        assert sheet.width > 200


def test_predictions_are_cocos_in_the_photographs_pixels(pvoc):
    from pycocotools.coco import COCO
    from pycocotools.mask import iou

    truth = COCO(str(pvoc / "ground_truth.json"))
    found = json.loads((pvoc / "predictions.json").read_text())
    assert len(truth.loadRes(found).getAnnIds()) == len(found) == 3
    rows = truth.dataset["annotations"]
    assert rows[0]["bbox"] == [8, 4, 32, 36] and truth.dataset["images"][0]["width"] == 64
    scores = [iou(np.array([p["bbox"]]), np.array([t["bbox"]]), [0])[0, 0] for p, t in zip(found, rows, strict=True)]
    results = json.loads((pvoc / "results.json").read_text())["pin"]
    assert np.mean(scores) == pytest.approx(results["mIoU"], abs=1e-4)  # squashing changes no IoU
    assert np.mean(np.array(scores) >= 0.3) == pytest.approx(results["P@0.3"])
    assert all({"text", "parsed", "query_text", "score"} <= row.keys() for row in found)


def test_bad_records_are_in_the_results(vlm_folder, tmp_path):
    layouts.coco(tmp_path)
    (tmp_path / "val2017" / "000000000139.jpg").write_bytes(b"")
    insert = tmp_path / "insert.safetensors"
    config = pin_config(vlm_folder, insert, "tiny,eval=coco", data_dir=str(tmp_path))
    config.eval.select.max_annotations = 0
    pin.run(config, tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["data"]["bad_records"]["counts"] == {"unreadable image": 1}
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {row["category_id"] for row in found} <= {1, 44, 62} and {row["image_id"] for row in found} <= {285, 632}
    config.on_bad_record = "refuse"
    with pytest.raises(UserError, match=r"000000000139\.jpg"):
        pin.run(config, tmp_path / "refused")
    with pytest.raises(UserError, match="data set 'pvocc': expected one of pvoc"):
        config.eval.source = "pvocc"
        pin.run(config, tmp_path / "unknown")


def test_blip2_on_refcoco(tmp_path):
    layouts.refcoco(tmp_path / "data", said=("dog", "hot dog", "cat"))  # words of the tiny model
    folder, insert = write_blip2(tmp_path / "vlm"), tmp_path / "insert.safetensors"
    config = pin_config(folder, insert, "eval=refcoco", pin_blip2, data_dir=str(tmp_path / "data"))
    assert config.eval.select.max_annotations == 0
    pin.run(config, tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "predictions_refcoco.json").read_text())
    assert [row["sent"] for row in rows] == ["dog", "hot dog", "cat"]
    assert rows[1]["sent_id"] == 11 and rows[1]["gt_box"] == [4, 4, 30, 40] and 0 <= rows[1]["iou"] <= 1
    results = json.loads((tmp_path / "out" / "results.json").read_text())["pin"]
    assert results["P@0.5"] == pytest.approx(np.mean([row["iou"] >= 0.5 for row in rows]))
    assert results["other_iou"] is None  # two sentences about one object are not two objects


def gem_config(folder, variant, **changes):
    config = gem_clip.get_config(variant)
    config.update({"model": str(folder), "depth": 3, "size": 32} | changes)
    return config


def test_gem_on_voc_segmentation(clip_folder, tmp_path):  # noqa: F811
    top = layouts.voc2012(tmp_path)
    label = top / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_000042.png"
    label.write_bytes(b"")
    gem_runs.run(gem_config(clip_folder, "tiny,eval=voc", data_dir=str(top)), tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["table"]) == {"clip", "gem"} and results["bad_records"]["counts"] == {"unreadable image": 1}
    assert all(0 <= results["table"]["gem"][key] <= 1 for key in ("mIoU", "mIoU_bg", "threshold"))
    with pytest.raises(UserError, match="names 'latin': expected one of published, readable, sclip"):
        gem_runs.run(gem_config(clip_folder, "tiny,eval=voc", data_dir=str(top), names="latin"), tmp_path / "names")
    with pytest.raises(UserError, match="config.source 'moon': expected scenes, labels:DIR, points:DIR, or a data set"):
        gem_runs.run(gem_config(clip_folder, "tiny,eval=moon", data_dir=str(top)), tmp_path / "moon")


def test_a_protocol_sets_all_of_it(clip_folder, tmp_path):  # noqa: F811
    config = gem_clip.get_config("protocol=sclip,eval=voc")
    assert config.methods == ("sclip",) and config.thresholds == (0.1,) and config.logit_scale == 65.0
    assert (config.window, config.stride, config.shorter, config.smallest_area) == (224, 112, 336, 0.1)
    assert gem_clip.get_config("eval=ade20k,protocol=proxyclip").thresholds == (0.0,)
    assert gem_clip.get_config("eval=cityscapes,protocol=proxyclip").window == 224
    gem = gem_clip.get_config("eval=voc,protocol=gem")
    assert gem.methods == ("clip", "gem") and gem.window == 0 and gem.thresholds == ()
    for whole in (config, gem):
        schema.check(whole)
    with pytest.raises(ValueError, match="protocol=mmseg: expected one of gem, sclip, proxyclip"):
        gem_clip.get_config("eval=voc,protocol=mmseg")
    top = layouts.voc2012(tmp_path)
    config = gem_config(
        clip_folder, "tiny,eval=voc,protocol=proxyclip", data_dir=str(top), proxy="assets/tiny_flamingo", prompt_set="",
        window=160, shorter=160, stride=80, methods=("proxyclip", "corrclip refine=regions"), stitch=True,
    )  # fmt: skip
    gem_runs.run(config, tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["table"]
    assert {row["threshold"] for row in rows.values()} == {0.2} and 0 <= rows["proxyclip"]["mIoU_bg"] <= 1


def test_gem_boxes_go_through_the_same_evaluator(clip_folder, tmp_path):  # noqa: F811
    layouts.voc2007(tmp_path)
    gem_runs.run(gem_config(clip_folder, "tiny,eval=pvoc", data_dir=str(tmp_path)), tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    scores = results["seeds"]["gem"]["pvoc"]["box"]
    assert scores["queries"] == 3 and scores["mIoU"] == results["table"]["gem"]["box mIoU"]
    found = json.loads((tmp_path / "out" / "predictions_gem.json").read_text())
    assert len(found) == 3 and (tmp_path / "out" / "predictions_clip.json").exists()
    from pycocotools.mask import iou

    truth = json.loads((tmp_path / "out" / "ground_truth.json").read_text())["annotations"]
    own = [iou(np.array([p["bbox"]]), np.array([t["bbox"]]), [0])[0, 0] for p, t in zip(found, truth, strict=True)]
    assert np.mean(own) == pytest.approx(scores["mIoU"], abs=1e-4)


def test_gem_on_points(clip_folder, tmp_path):  # noqa: F811
    top = layouts.openimages(tmp_path / "data")
    gem_runs.run(gem_config(clip_folder, "tiny,eval=openimages", data_dir=str(top)), tmp_path / "out")
    row = json.loads((tmp_path / "out" / "results.json").read_text())["table"]["gem"]
    assert 0 <= row["p-mIoU"] <= 1


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    layouts.voc2012(tmp_path)
    with pytest.raises(UserError, match="nowhere"):
        gem_runs.run(gem_config(tmp_path / "nowhere", "tiny,eval=voc", data_dir=str(tmp_path)), tmp_path / "out")


def test_variants_and_choices_compose():
    assert pin_flamingo.get_config("eval=refcoco:testB,3b").eval.source == "refcoco:testB"
    config = pin_blip2.get_config("flan-t5-xl,eval=lvis")
    assert config.vlm.endswith("flan-t5-xl") and config.run == "evaluate" and config.eval.decoder == "beam"
    assert gem_clip.get_config("eval=context").source == "context" and gem_clip.get_config().run == "predict"
    for given, words in (
        ("tinny", "no variant 'tinny'; expected one of tiny"), ("tiny,3b", "no variant '3b', beside 'tiny'"),
        ("tiny,evil=3", "'evil=3' is no choice; or .*eval="), ("eval=", "'eval=' is no choice"),
        ("eval=a,eval=b", "'eval=b' is no choice"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            pin_flamingo.get_config(given)


def test_large_vision_tokens_stand_in_a_file(vlm_folder, monkeypatch):
    vlm, _ = load_vlm(str(vlm_folder))
    images = list(np.random.default_rng(0).integers(0, 255, (5, 160, 160, 3)).astype(np.uint8))
    small = evaluate.encode(vlm, images, 2)
    monkeypatch.setattr(evaluate, "IN_MEMORY", 10)
    large = evaluate.encode(vlm, images, 2)
    assert isinstance(large, np.memmap) and not isinstance(small, np.memmap)
    np.testing.assert_array_equal(small, large)
