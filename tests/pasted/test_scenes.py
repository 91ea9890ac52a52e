"""Scenes: pure functions of (seed, index), with the names and numbers the config asks for."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.pasted import backgrounds, cutouts
from input_pipeline.pasted import names as naming
from input_pipeline.pasted.scenes import SceneConfig, Scenes
from tests.pasted.test_paste import is_uniform

CONFIG = SceneConfig(image_size=64, grid=16)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_a_scene_is_a_pure_function_of_seed_and_index():
    scenes = Scenes(dataclasses.replace(CONFIG, look_share=0.5, mirror=0.5, crop=0.5, twins=0.3), 3, 100)
    again = Scenes(scenes.config, 3, 100)
    first = [scenes[i] for i in range(8)]
    for i in (7, 2, 2, 0):
        assert same(again[i], first[i])
        assert same(pickle.loads(pickle.dumps(scenes))[i], first[i])
    pictures = {record["image"].tobytes() for record in [*first, Scenes(scenes.config, 4, 100)[0]]}
    assert len(pictures) == 9  # another index or another seed is another picture
    assert len({record["cells"].tobytes() for record in first}) == 8


def test_record():
    record = Scenes(dataclasses.replace(CONFIG, objects=(3, 3), with_masks=True), 0, 10)[0]
    assert record["image"].shape == (64, 64, 3) and record["image"].dtype == np.uint8
    assert record["masks"].shape == (3, 64, 64)
    assert record["query_text"] == record["names"] and len(set(record["names"])) == 3
    np.testing.assert_array_equal(record["boxes"], CONFIG.codec.to_pixels(record["cells"]))
    for mask, (x1, y1, x2, y2) in zip(record["masks"], record["boxes"].astype(int), strict=True):
        outside = mask.copy()
        outside[y1:y2, x1:x2] = False
        assert mask.any() and not outside.any()


def test_describe_is_the_record_without_its_picture():
    scenes = Scenes(dataclasses.replace(CONFIG, look_share=0.5, twins=0.3), 0, 20)
    for i in range(10):
        record = scenes[i]
        del record["image"]
        assert same(scenes.describe(i), record)


def test_counts_targets_and_names_are_uniform():
    scenes = Scenes(CONFIG, 0, 3000)
    records = [scenes.describe(i) for i in range(3000)]
    counts = [len(record["names"]) for record in records]
    assert is_uniform(counts, range(1, 4))
    for n in (2, 3):
        assert is_uniform([r["target"] for r in records if len(r["names"]) == n], range(n))
    assert is_uniform([r["names"][r["target"]] for r in records], scenes.names)
    assert all(len(set(r["names"])) == len(r["names"]) for r in records)


def test_twins_share_a_name_as_often_as_asked():
    scenes = Scenes(dataclasses.replace(CONFIG, objects=(2, 3), twins=0.4), 0, 1000)
    records = [scenes.describe(i) for i in range(1000)]
    twins = [r for r in records if len(set(r["names"])) < len(r["names"])]
    assert 0.33 < len(twins) / 1000 < 0.47
    for r in twins:
        assert r["names"][0] == r["names"][1] and r["query_text"][0] != r["names"][0] != r["query_text"][1]


def test_twemoji_name_splits_are_disjoint():
    train, held_out, both = (set(cutouts.load("twemoji", split).names) for split in naming.SPLITS)
    assert train and held_out and not train & held_out and train | held_out == both
    assert {n for s in ("train", "held_out") for n in Scenes(dataclasses.replace(CONFIG, split=s), 0, 1).names} == both
    for name in both:
        assert cutouts.normalise(name) == name


def test_split_names_are_disjoint():
    names = [f"n{i:02}" for i in range(20)] * 2
    train, held_out = naming.choose("folder", names, "train"), naming.choose("folder", names, "held_out")
    assert held_out == {"n05", "n11", "n17"} and train | held_out == set(names) and not train & held_out


def test_every_twemoji_and_background_can_be_read():
    source = cutouts.twemoji()
    for i in range(0, len(source), 10):
        name, image = source[i]
        assert name == source.names[i] and image.mode == "RGBA"
        assert image.getchannel("A").point(lambda a: 255 if a >= 16 else 0).getbbox() == (0, 0, *image.size)
    assert all(path.is_file() for _, path in source.entries)
    photos = {split: backgrounds.load("photos", split) for split in naming.SPLITS}
    assert not set(photos["train"].paths) & set(photos["held_out"].paths)
    assert all(path.is_file() for path in photos["all"].paths)


def write(path, size=(8, 6), colour=(255, 0, 0, 255)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", size, colour).save(path)


def test_cutout_folder(tmp_path):
    write(tmp_path / "water_bottle (plastic)" / "1.png")
    write(tmp_path / "water_bottle (plastic)" / "2.png")
    write(tmp_path / "red_cat.png", size=(600, 300))
    source = cutouts.load(f"folder:{tmp_path}")
    assert source.names == ["red cat", "water bottle", "water bottle"]
    assert source[0][1].size == (256, 128)
    assert cutouts.load(f"folder:{tmp_path}", exclude=["red cat"]).names == ["water bottle"] * 2
    scenes = Scenes(dataclasses.replace(CONFIG, cutouts=f"folder:{tmp_path}", split="all"), 0, 5)
    assert all(len(scenes[i]["names"]) <= 2 for i in range(5))


def test_tux_paint_stamps_are_named_by_their_first_sentence(tmp_path):
    for stem, text in (
        ("lamb", "A baby sheep (a lamb).\nfr.utf8=Un agneau."),
        ("owl", "An owl! It hoots."),
        ("nil", ""),
    ):
        write(tmp_path / "animals" / f"{stem}.png")
        (tmp_path / "animals" / f"{stem}.txt").write_text(text, "utf-8")
    write(tmp_path / "animals" / "lamb_mirror.png")
    (tmp_path / "animals" / "lamb_mirror.txt").write_text("A baby sheep.", "utf-8")
    assert cutouts.load(f"tuxpaint:{tmp_path}").names == ["baby sheep", "owl"]


def test_fluent_art_is_named_by_unicode(tmp_path):
    modules = tmp_path / "node_modules"
    for code in ("1f408", "2602-fe0f", "ffff"):
        write(modules / "@lobehub" / "fluent-emoji-3d" / "assets" / f"{code}.webp")
    names = modules / "emojibase-data" / "en" / "data.json"
    names.parent.mkdir(parents=True)
    rows = [{"hexcode": "1F408", "label": "cat"}, {"hexcode": "2602-FE0F", "label": "umbrella"}]
    names.write_text(json.dumps(rows), "utf-8")
    assert cutouts.load(f"fluent:{tmp_path}").names == ["cat", "umbrella"]


def test_cutouts_are_trimmed(tmp_path):
    image = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    image.paste((0, 255, 0, 255), (3, 5, 9, 16))
    image.save(tmp_path / "dog.png")
    assert cutouts.folder(tmp_path)[0][1].size == (6, 11)


@pytest.mark.parametrize(
    ("spec", "message"),
    [("nonsense", "expected twemoji"), ("folder:", "expected folder:FOLDER"), ("fluent:", "expected fluent:FOLDER"),
     ("folder:{}/missing", "no such folder"), ("folder:{}", "no picture for split 'all'"),
     ("tuxpaint:{}", "no stamps there"), ("fluent:{}", "npm install")],
)  # fmt: skip
def test_cutout_sources_that_cannot_be(tmp_path, spec, message):
    with pytest.raises(UserError, match=message):
        cutouts.load(spec.format(tmp_path))


def test_unknown_split():
    with pytest.raises(UserError, match="split 'test': expected one of train, held_out, all"):
        cutouts.load("twemoji", "test")
    with pytest.raises(UserError, match="background split 'test': expected one of train, held_out, all"):
        backgrounds.load("photos", "test")


def test_bad_cutout_files_are_named(tmp_path):
    (tmp_path / "cat.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(UserError, match=r"cat\.png: cannot be read as a picture"):
        cutouts.folder(tmp_path)[0]
    write(tmp_path / "cat.png", colour=(9, 9, 9, 0))
    with pytest.raises(UserError, match=r"cat\.png \(cat\): wholly transparent"):
        cutouts.folder(tmp_path)[0]


def test_background_folders(tmp_path):
    for name in ("missing", "nonsense"):
        with pytest.raises(UserError):
            backgrounds.load(f"folder:{tmp_path}/{name}" if name == "missing" else name)
    with pytest.raises(UserError, match="no JPEG, PNG or WebP"):
        backgrounds.load(f"folder:{tmp_path}")
    for i in range(10):
        write(tmp_path / "plain" / f"{i}.png", size=(20, 10), colour=(i, 0, 0, 255))
    train, held_out = (backgrounds.load(f"folder:{tmp_path}/plain", s) for s in ("train", "held_out"))
    assert len(train) == 8 and len(held_out) == 2 and not set(train.paths) & set(held_out.paths)
    write(tmp_path / "bg" / "train" / "a.png")
    write(tmp_path / "bg" / "testval" / "b.png")
    assert [p.name for p in backgrounds.load(f"folder:{tmp_path}/bg", "train").paths] == ["a.png"]
    assert [p.name for p in backgrounds.load(f"folder:{tmp_path}/bg", "held_out").paths] == ["b.png"]
    image = train.draw(np.random.default_rng(0), 16)
    assert image.size == (16, 16) and image.mode == "RGB"
