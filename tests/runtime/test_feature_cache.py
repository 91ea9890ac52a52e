"""What is computed once of each scene: found again or taken up again, read anywhere, damage named, a full disk told."""

from __future__ import annotations

import concurrent.futures
import json
import pickle
import shutil

import filelock
import ml_dtypes
import numpy as np
import pytest

from input_pipeline.errors import UserError
from pin_jax.runtime import feature_cache


class Few:
    """Records whose picture is their own number."""

    def __init__(self, count: int = 3):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"Few({self.count})"

    def describe(self, index: int) -> dict:
        return {"index": index}

    def __getitem__(self, index: int) -> dict:
        return {"image": np.full((2, 2, 3), index, np.uint8)}


def twice(images):
    return images[:, 0] * np.float32(2)


class Counting:
    """`twice` that counts its batches, and dies at one of them."""

    def __init__(self, dies_at: int = -1, error: BaseException | None = None):
        self.calls, self.dies_at, self.error = 0, dies_at, error

    def __call__(self, images):
        if self.calls == self.dies_at:
            raise self.error
        self.calls += 1
        return twice(images)


def data(folder):
    (path,) = folder.glob("*.npy")
    return path


def test_computed_once_and_read_anywhere(tmp_path):
    bank = feature_cache.build(Few(), twice, tmp_path, "weights", batch_size=2)
    path = data(tmp_path)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".npy"]
    again = [feature_cache.build(Few(), encode, tmp_path, "weights") for encode in (None, twice)]
    assert [b.key for b in again] == ["image", "vision"] and again[1].path == path == bank.path
    copy = pickle.dumps(bank)
    assert len(copy) < 1000  # the file's name, not what is in it
    for one in (bank, again[1], pickle.loads(copy)):
        path.rename(path.with_suffix(".away"))  # reading a record opens nothing: threads that parse at once may fail
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for record in pool.map(one.__getitem__, [0, 1, 2] * 20):
                assert record["vision"].shape == (2, 3) and (record["vision"] == 2 * record["index"]).all()
        path.with_suffix(".away").rename(path)


def test_features_stay_in_the_dtype_of_the_encoder(tmp_path):
    def half(images):
        return twice(images).astype(ml_dtypes.bfloat16)

    bank = feature_cache.build(Few(64), half, tmp_path / "half", "weights")
    whole = feature_cache.build(Few(64), twice, tmp_path / "whole", "weights")
    assert bank[5]["vision"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(bank[5]["vision"].astype(np.float32), whole[5]["vision"])
    sizes = [path.stat().st_size - 128 for path in (bank.path, whole.path)]
    assert 2 * sizes[0] == sizes[1]


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 64
    path.write_bytes(content)


def test_a_damaged_row_is_refused_by_name(tmp_path):
    feature_cache.build(Few(), twice, tmp_path, "weights")
    path = data(tmp_path)
    flip(path, 128 + 24 + 5)
    bank = feature_cache.build(Few(), twice, tmp_path, "weights")
    assert (bank[0]["vision"] == 0).all()
    with pytest.raises(UserError, match=rf"{path.name}: row 1 is damaged; delete"):
        bank[1]


def halve(path):
    np.save(path, np.load(path)[:1])


def other_dtype(path):
    np.save(path, np.load(path).astype(np.float64))


def no_card(path):
    path.with_suffix(".json").unlink()


def broken_card(path):
    path.with_suffix(".json").write_text("[1")


def other_card(path):
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(card | {"crc32": card["crc32"][:1]}))


def cut(path):
    path.write_bytes(path.read_bytes()[:140])


def empty(path):
    path.write_bytes(b"")


def header(path):
    flip(path, 3)


@pytest.mark.parametrize(
    "damage", [halve, other_dtype, no_card, broken_card, other_card, cut, empty, header], ids=lambda f: f.__name__
)
def test_files_that_do_not_agree_are_made_anew(tmp_path, capsys, damage):
    whole = feature_cache.build(Few(), twice, tmp_path, "weights")
    wanted = whole.path.read_bytes()
    damage(data(tmp_path))
    bank = feature_cache.build(Few(), twice, tmp_path, "weights")
    assert (bank[2]["vision"] == 4).all() and bank.path.read_bytes() == wanted
    assert damage is no_card or f"{bank.path.name} is damaged" in capsys.readouterr().out.replace("\n", "")
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".npy"]


def test_what_a_death_left_is_taken_up_again(tmp_path, capsys):
    whole = feature_cache.build(Few(9), twice, tmp_path / "whole", "weights", batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        feature_cache.build(Few(9), Counting(3, KeyboardInterrupt()), tmp_path / "w", "weights", batch_size=2)
    left = sorted(p.name for p in (tmp_path / "w").iterdir())
    assert [name.rpartition(".")[2] for name in left] == ["partial", "partial_crc32"]
    (tmp_path / "w" / f"{whole.path.stem}.1234.npy").write_bytes(b"of an older version")
    shutil.copytree(tmp_path / "w", tmp_path / "torn")
    again = Counting()
    bank = feature_cache.build(Few(9), again, tmp_path / "w", "weights", batch_size=2)
    assert again.calls == 2 and "going on from 6 of 9" in capsys.readouterr().out
    assert bank.path.read_bytes() == whole.path.read_bytes()
    assert sorted(p.suffix for p in (tmp_path / "w").iterdir()) == [".json", ".npy"]
    (partial,) = (tmp_path / "torn").glob("*.partial")
    flip(partial, 128 + 3 * 24 + 1)  # a power loss wrote the sums and not the rows
    again = Counting()
    bank = feature_cache.build(Few(9), again, tmp_path / "torn", "weights", batch_size=2)
    assert again.calls == 4 and bank.path.read_bytes() == whole.path.read_bytes()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    full = OSError(28, "No space left on device")
    with pytest.raises(UserError, match="No space left on device.*free disk space.*config.cache_images=0"):
        feature_cache.build(Few(9), Counting(3, full), tmp_path, "weights", batch_size=2)
    assert not list(tmp_path.iterdir())


def test_two_runs_do_not_build_the_same_file(tmp_path):
    bank = feature_cache.build(Few(), twice, tmp_path / "a", "weights")
    (tmp_path / "b").mkdir()
    with filelock.FileLock(tmp_path / "b" / f"{bank.path.stem}.lock"):
        with pytest.raises(UserError, match="another run is building it"):
            feature_cache.build(Few(), twice, tmp_path / "b", "weights")


def test_other_weights_have_other_files_and_a_bucket_none(tmp_path):
    one, other = (feature_cache.build(Few(), twice, tmp_path, of) for of in ("weights", "other weights"))
    assert one.path != other.path
    with pytest.raises(UserError, match="gs://bucket/cache.*give a local folder"):
        feature_cache.build(Few(), twice, "gs://bucket/cache", "weights")
