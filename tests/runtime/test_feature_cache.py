"""What is computed once of each scene: found again, read by threads and by workers, refused where it is broken."""

from __future__ import annotations

import concurrent.futures
import pickle

import numpy as np
import pytest

from input_pipeline.errors import UserError
from pin_jax.runtime import feature_cache


class Few:
    """Three records whose picture is their own number."""

    def __len__(self) -> int:
        return 3

    def __repr__(self) -> str:
        return "Few()"

    def describe(self, index: int) -> dict:
        return {"index": index}

    def __getitem__(self, index: int) -> dict:
        return {"image": np.full((2, 2, 3), index, np.uint8)}


def twice(images):
    return images[:, 0] * np.float32(2)


def test_computed_once_and_read_anywhere(tmp_path):
    bank = feature_cache.build(Few(), twice, tmp_path, "weights", batch_size=2)
    (path,) = tmp_path.iterdir()
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


def test_a_broken_file_is_named(tmp_path):
    feature_cache.build(Few(), twice, tmp_path, "weights")
    (path,) = tmp_path.iterdir()
    for content in (path.read_bytes()[:100], b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"feature cache .*{path.name} cannot be read .* delete it"):
            feature_cache.build(Few(), twice, tmp_path, "weights")
    other = feature_cache.build(Few(), twice, tmp_path, "other weights")
    assert other.path != path
