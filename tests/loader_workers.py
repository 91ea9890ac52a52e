"""Run by test_loader.py in its own process, since grain's workers are spawned: prints batches by number of workers."""

import hashlib
import json
import pathlib
import sys

import grain
import numpy as np
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from input_pipeline.loader import batches  # noqa: E402
from input_pipeline.scenes import SceneConfig, Scenes  # noqa: E402


class Picture(grain.transforms.RandomMap):
    """A scene's picture, a random number, and the id."""

    def random_map(self, record, rng):
        return {"image": record["image"], "noise": rng.random(), "id": np.int64(record["image_id"])}


def make(workers: int):
    """The iterator under test."""
    scenes = Scenes(SceneConfig(image_size=32, grid=16), 0, 20)
    return batches(scenes, [Picture()], 4, seed=1, workers=workers)


def read(iterator, count: int) -> list:
    """Ids, noise and a digest of the pictures of the next batches."""
    out = []
    for _ in range(count):
        batch = next(iterator)
        out.append([batch["id"].tolist(), batch["noise"].tolist(), hashlib.sha256(batch["image"]).hexdigest()])
    return out


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    found = {str(workers): read(make(workers), 6) for workers in (0, 1)}
    iterator = make(2)
    found["2"] = read(iterator, 2)
    state = iterator.get_state()
    found["2"] += read(iterator, 4)
    resumed = make(2)
    resumed.set_state(state)
    print(json.dumps(found | {"resumed": read(resumed, 4)}))
