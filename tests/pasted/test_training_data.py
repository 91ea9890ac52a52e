"""Training data: X-Paste's pools, BG-20k, what is left out of training, and packing once."""

from __future__ import annotations

import json
import os
import pathlib
import pickle

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import prepare as prepare_config
from input_pipeline.errors import UserError
from input_pipeline.loader import batches
from input_pipeline.memory import Memory, remembered
from input_pipeline.pasted import backgrounds, cutouts, packed, packing, sizes
from input_pipeline.pasted.scenes import SceneConfig, Scenes
from input_pipeline.sets.bad_records import BadRecordLog
from input_pipeline.transforms import Only
from pin_jax.programs import prepare
from tests.fixtures import layouts


@pytest.mark.parametrize("by", ["name", "index"])
def test_xpaste_pools_and_the_papers_split(tmp_path, by):
    spec = layouts.xpaste(tmp_path, by)
    assert cutouts.load(spec, "train").names == ["aerosol can", "alarm clock", "water bottle"]
    # COCO's by synset (airplane; a flowerpot is its potted plant), VOC's by synonym (sofa): pasted for validation.
    assert cutouts.load(spec, "held_out").names == ["airplane", "flowerpot", "sofa"]
    assert "projectile" not in cutouts.load(spec, "all").names
    name, picture = cutouts.load(spec, "train")[0]
    assert name == "aerosol can" and picture.getpixel((picture.width // 2, picture.height // 2)) == (255, 0, 0, 255)
    assert picture.width < 60 and picture.height < 40  # trimmed
    assert cutouts.load(f"xpaste:{tmp_path}", "train").names == cutouts.load(spec, "train").names
    assert cutouts.load(f"xpaste:{tmp_path / 'images'}", "held_out").names == ["airplane", "flowerpot", "sofa"]


def test_names_are_left_out_of_any_source(tmp_path):
    layouts.xpaste(tmp_path)
    left = cutouts.load(f"folder:{tmp_path / 'images'}", "all", ("@coco", "@voc", "projectile"))
    assert left.names == ["aerosol can", "alarm clock", "water bottle"]


def test_groups_that_a_source_holds_out_stay_its_validation(tmp_path, prepared):
    spec, groups = layouts.xpaste(tmp_path), ("@coco", "@voc")
    pack = f"packed:{prepared[0] / 'packed' / 'cutouts'}"
    for source in (spec, pack):  # the default of the published recipe
        assert set(cutouts.load(source, "train", groups).names) <= {"aerosol can", "alarm clock", "water bottle"}
        assert cutouts.load(source, "held_out", groups).names == ["airplane", "flowerpot", "sofa"]
        assert cutouts.load(source, "held_out", (*groups, "sofa")).names == ["airplane", "flowerpot"]
        assert not {"airplane", "sofa"} & set(cutouts.load(source, "all", groups).names)


@pytest.mark.parametrize("held, words", [
    ({"5000": []}, "category 5000; LVIS has 0 to 1202"), ({"cat": "cat.png"}, "'cat' is not a list of paths"),
    ([1], "a list; expected an object"), ({"cat": [{"path": 3}]}, "'cat' is not a list of paths"),
])  # fmt: skip
def test_a_pool_of_another_form_is_one_line(tmp_path, held, words):
    (tmp_path / "pool.json").write_text(json.dumps(held))
    with pytest.raises(UserError, match=words):
        cutouts.load(f"xpaste:{tmp_path / 'pool.json'}")


def config_for(root, **changes) -> ConfigDict:
    config = prepare_config.get_config()
    config.update({"cutouts": layouts.xpaste(root), "backgrounds": layouts.bg20k(root / "bg"), "side": 64} | changes)
    return config


@pytest.fixture
def prepared(tmp_path):
    """A workdir that `prepare` has filled from a pool and BG-20k, each with a broken file."""
    config = config_for(tmp_path)
    (tmp_path / "bg" / "train" / "h_00000003.jpg").write_bytes(b"")
    held = json.loads((tmp_path / "pool.json").read_text())
    held["alarm_clock"].append("alarm_clock/0002.png")
    (tmp_path / "pool.json").write_text(json.dumps(held))
    prepare.run(config, tmp_path / "packed")
    return tmp_path, config


def test_prepare_packs_what_training_reads(prepared):
    root, config = prepared
    done = json.loads((root / "packed" / "prepared.json").read_text())
    assert done["backgrounds"] == 5 and done["cutouts"] == 6
    assert done["bad_records"]["counts"] == {"missing image": 1, "unreadable image": 1}
    for split in ("train", "held_out", "all"):
        plain, own = (cutouts.load(spec, split) for spec in (config.cutouts, f"packed:{root / 'packed' / 'cutouts'}"))
        assert sorted(set(plain.names)) == own.names
        plain = plain if split == "held_out" else plain.drop(["alarm clock"])
        own = own if split == "held_out" else own.drop(["alarm clock"])
        for k in range(len(own)):
            assert own.aspect(k) == plain.aspect(k)
            for size in ((54, 34), (40, 28), (10, 7)):
                a, b = (np.asarray(source.render(k, size), np.float32) for source in (own, plain))
                seen = b[..., 3:] / 255  # colours count where they are seen
                assert a.shape == (size[1], size[0], 4) and np.abs((a - b)[..., 3]).max() <= 14
                assert np.abs(a[..., :3] * a[..., 3:] / 255 - b[..., :3] * seen).max() <= 14
    back = backgrounds.load(f"packed:{root / 'packed' / 'backgrounds'}", "held_out")
    assert len(back) == 1 and len(backgrounds.load(f"packed:{root / 'packed' / 'backgrounds'}", "train")) == 4
    wanted = backgrounds.load(config.backgrounds, "held_out").original(0).resize((64, 64), Image.Resampling.BILINEAR)
    found = back.draw(np.random.default_rng(0), 64)
    assert found.size == (64, 64) and np.abs(np.asarray(found, int) - np.asarray(wanted, int)).mean() < 3


def test_prepare_goes_on_and_refuses(prepared):
    root, config = prepared
    before = (root / "packed" / "cutouts" / "index.json").stat().st_mtime_ns
    prepare.run(config, root / "packed")  # what is there is left
    assert (root / "packed" / "cutouts" / "index.json").stat().st_mtime_ns == before
    config.side = 32
    with pytest.raises(UserError, match="from folder.* at 64 px without .*, not .* at 32; choose another"):
        prepare.run(config, root / "packed")
    config.on_bad_record = "refuse"
    with pytest.raises(UserError, match="h_00000003.jpg"):
        prepare.run(config, root / "strict")
    assert not (root / "strict" / "backgrounds").exists()
    for text in ("{", "[]", json.dumps(GOOD | {"kind": "backgrounds", "exclude": 5})):
        (root / "packed" / "backgrounds" / "index.json").write_text(text)
        with pytest.raises(UserError, match="there, but no pack .*; choose another --workdir"):
            prepare.run(config, root / "packed")
    with pytest.raises(UserError, match="config.cutouts and config.backgrounds are empty"):
        prepare.run(prepare_config.get_config(), root / "none")


def test_scenes_from_packed_data_are_the_same_for_any_reader(prepared):
    root, _ = prepared
    spec = {kind: f"packed:{root / 'packed' / kind}" for kind in ("cutouts", "backgrounds")}
    config = SceneConfig(image_size=64, grid=16, **spec, with_masks=True)
    scenes = Scenes(config, 0, 8)
    copy = pickle.loads(pickle.dumps(scenes))
    for k in (3, 0):
        np.testing.assert_array_equal(scenes[k]["image"], copy[k]["image"])
        assert scenes[k]["masks"].any((1, 2)).all() and scenes.describe(k)["names"] == scenes[k]["names"]
    validation = Scenes(SceneConfig(image_size=64, **spec, split="held_out"), 0, 8)
    assert validation.names == ["airplane", "flowerpot", "sofa"]  # the synthetic zero-shot validation
    looks = Scenes(SceneConfig(image_size=64, **spec, look_share=1.0, mirror=1.0, crop=0.5, vary=1.0), 0, 8)[0]
    assert looks["image"].shape == (64, 64, 3)
    one = [next(batches(scenes, [Only(("image",))], 4, threads=threads))["image"] for threads in (1, 2)]
    np.testing.assert_array_equal(*one)


def test_broken_packs_are_one_line(prepared):
    root, _ = prepared
    folder = root / "packed" / "cutouts"
    with pytest.raises(UserError, match="holds cutouts, expected backgrounds"):
        backgrounds.load(f"packed:{folder}")
    data = next(folder.glob("data-*"))
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(UserError, match="cutouts: broken .*; prepare it again"):
        cutouts.load(f"packed:{folder}")[0]
    (folder / "index.json").write_text("{")
    with pytest.raises(UserError, match="index.json: not intact JSON"):
        cutouts.load(f"packed:{folder}")
    with pytest.raises(UserError, match="no index.json in it; make it first"):
        cutouts.load(f"packed:{root}")


def test_packed_data_damaged_inside_are_refused(prepared):
    data = next((prepared[0] / "packed" / "cutouts").glob("data-*"))
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 3] ^= 1  # one bit, the size as it was: the format has checksums
    data.write_bytes(raw)
    source = cutouts.load(f"packed:{prepared[0] / 'packed' / 'cutouts'}")
    with pytest.raises(UserError, match="cutouts: broken .*; prepare it again"):
        for k in range(len(source)):
            source[k]


GOOD = {
    "kind": "cutouts",
    "version": 1,
    "count": 1,
    "source": "x",
    "names": ["a"],
    "splits": ["train"],
    "sizes": [[5, 5]],
}


@pytest.mark.parametrize(
    "changes", [[], None, 5, {"count": "x"}, {"count": -1}, {"count": 10**9}, {"count": True}, {"names": [5]},
                {"names": "a"}, {"splits": None}, {"sizes": [[5]]}, {"sizes": [["a", 5]]}, {"sizes": [[0, 5]]},
                {"sizes": [5]}, {"source": 5}, {"version": 2}]
)  # fmt: skip
def test_an_index_of_another_form_is_one_line(tmp_path, changes):
    (tmp_path / "index.json").write_text(json.dumps(GOOD | changes if isinstance(changes, dict) else changes))
    with pytest.raises(UserError, match="prepare it again"):
        cutouts.load(f"packed:{tmp_path}", "train")


@pytest.mark.parametrize("missing", ["count", "names", "splits", "sizes"])
def test_an_index_without_an_entry_is_one_line(tmp_path, missing):
    (tmp_path / "index.json").write_text(json.dumps({k: v for k, v in GOOD.items() if k != missing}))
    with pytest.raises(UserError, match="prepare it again"):
        cutouts.load(f"packed:{tmp_path}", "train")


def test_packed_data_that_are_no_file_are_never_waited_for(tmp_path):
    (tmp_path / "index.json").write_text(json.dumps(GOOD))
    os.mkfifo(tmp_path / "data-00000.array_record")
    with pytest.raises(UserError, match="is a FIFO"):
        cutouts.load(f"packed:{tmp_path}", "train")[0]


@pytest.mark.parametrize("text", ["{", "5", "[5]", '[{"hexcode": 5}]', '[{"hexcode": "1f600", "label": 5}]'])
def test_fluent_data_of_another_form_is_one_line(tmp_path, text):
    (tmp_path / "fluent-emoji-3d" / "assets").mkdir(parents=True)
    (tmp_path / "emojibase-data" / "en").mkdir(parents=True)
    (tmp_path / "emojibase-data" / "en" / "data.json").write_text(text)
    with pytest.raises(UserError, match="data.json: .*install"):
        cutouts.load(f"fluent:{tmp_path}")


def test_a_pool_whose_paths_lead_out_is_refused(tmp_path):
    layouts.cutout(tmp_path / "secret.png", "red")
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "pool.json").write_text(json.dumps({"aerosol_can": ["../secret.png"]}))
    with pytest.raises(UserError, match="path '../secret.png' leads out of the pool"):
        cutouts.load(f"xpaste:{tmp_path / 'pool'}")


def test_a_full_disk_leaves_no_half_pack(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with pytest.raises(UserError, match="cannot be written .*free disk space"):
        packing.pack_backgrounds("photos", tmp_path / "packed", 16, BadRecordLog("refuse"))
    assert not list(tmp_path.iterdir())


def test_levels():
    assert packed.levels(224, 100) == [(224, 100), (112, 50), (56, 25), (28, 12)] and packed.levels(20, 5) == [(20, 5)]


def test_memory_forgets_what_was_used_longest_ago():
    made = []

    class Source:
        def __init__(self):
            self._memory = Memory(100, lambda value: 101 if value == "large" else 40)

        @remembered
        def get(self, key):
            made.append(key)
            return key

    source = Source()
    for key in "abacab":  # c pushes b out, b then pushes c out
        assert source.get(key) == key
    assert made == ["a", "b", "c", "b"] and len(source._memory) == 2
    assert source.get("large") == "large" and len(source._memory) == 2
    own = Memory(100)
    own["a"] = 1
    copy = pickle.loads(pickle.dumps(own))
    assert len(own) == 1 and len(copy) == 0 and copy.maxsize == 100


def test_sizes_are_kept_beside_features_so_that_nothing_is_decoded(tmp_path, monkeypatch):
    layouts.xpaste(tmp_path)
    layouts.bg20k(tmp_path / "bg")
    config = SceneConfig(image_size=64, cutouts=f"xpaste:{tmp_path}", backgrounds=f"folder:{tmp_path / 'bg'}")

    def scenes(decoding=True):
        source = Scenes(config, 0, 6)
        if not decoding:
            monkeypatch.setattr(
                type(source.cutouts), "original", lambda self, index: pytest.fail("a cut-out is decoded")
            )
        with sizes.kept(source.cutouts, tmp_path / "cache"):
            return [source.describe(k)["cells"].tolist() for k in range(6)]

    wanted = scenes()
    (table,) = (tmp_path / "cache").iterdir()
    assert scenes(decoding=False) == wanted
    monkeypatch.undo()
    raw = bytearray(table.read_bytes())
    raw[len(raw) // 2] ^= 1
    table.write_bytes(raw)
    assert scenes() == wanted and scenes(decoding=False) == wanted  # measured anew, and kept
    monkeypatch.undo()
    layouts.cutout(tmp_path / "images" / "alarm_clock" / "0001.png", "red", (40, 60))
    scenes()
    assert len(list((tmp_path / "cache").iterdir())) == 2  # of other files, another table
