"""Random damage: whatever a user hands in ends in success or in one line, never in a traceback or a wait without end.

The seed is printed with every failure; `FUZZ_SEED=5 python -m pytest tests/test_fuzz.py -s` draws others, and
`-m heavy` many more.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import threading
import time
import traceback
from collections.abc import Callable

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs.lib import catalogue, schema
from gem_jax import pretrained
from gem_jax.evaluation import sources
from input_pipeline.errors import UserError
from input_pipeline.images import open_image, open_labels
from input_pipeline.pasted import packing
from input_pipeline.pasted.scenes import Scenes, scene_config
from input_pipeline.sets import registry
from input_pipeline.sets.bad_records import BadRecordLog, walk
from input_pipeline.text.box_codec import BoxCodec
from pin_jax import adapters, methods
from pin_jax.vlm import load_vlm
from tests.fixtures import fuzz, gem_models, layouts, published_models, tiny_blip2
from tests.fixtures.golden_files import ROOT
from tests.fixtures.small import config_for, write_vlm
from tests.small.test_clip import folder as clip_folder  # noqa: F401 (a fixture)

SEED = int(os.environ.get("FUZZ_SEED", "0"))
LONGEST_LINE = 6000  # lists of tensors are long
LIMIT = 20.0  # seconds of one input
SELECT = {"max_annotations": 3, "difficult": True, "crowd": True, "one_per_class": False, "synonyms": False}
SELECT["names"] = "published"


def silent() -> BadRecordLog:
    return BadRecordLog("skip", lambda line: None)


# --- what is done with an input ---------------------------------------------------------------------------------------


def random_config(rng: np.random.Generator, folder: pathlib.Path, note: Callable[[str], None]) -> None:
    """A config that ships with entries that may not be; scenes of one that passes are drawn."""
    paths = sorted(path for path in (ROOT / "configs").glob("*.py") if hasattr(catalogue.load(path), "get_config"))
    path = paths[int(rng.integers(len(paths)))]
    config = catalogue.get_config(path)
    entries = [name for name, _ in schema.entries(config)]
    changed = []
    for name in rng.choice(entries, int(rng.integers(1, 4))):
        *above, last = str(name).split(".")
        holder = config
        for part in above:
            holder = holder[int(part)] if isinstance(holder, tuple | list) else holder[part]
        value = fuzz.odd(rng)
        if isinstance(holder, ConfigDict):
            with holder.ignore_type():
                holder[last] = value
        else:
            holder[last] = value
        changed.append(f"{name}={value!r:.60}")
    note(f"{path.stem} {'; '.join(changed)}")
    schema.check(config)
    if config.program == "pin" and config.scenes.cutouts == "twemoji" and config.scenes.backgrounds == "photos":
        codec = BoxCodec(16 * (config.grid or 16), config.grid or 16)
        options = {**config.scenes, **config.train_scenes, "image_size": codec.image_size, "grid": codec.grid}
        Scenes(scene_config(options, codec), config.seed, 2)[1]


def random_picture(rng: np.random.Generator, folder: pathlib.Path, note: Callable[[str], None]) -> None:
    """A picture of any mode, format and orientation, mostly damaged, as picture and as labels."""
    modes = {"png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "jpg": ("L", "RGB", "CMYK"),
             "tif": ("1", "L", "P", "RGB", "RGBA", "CMYK", "I", "F", "LAB", "YCbCr"), "webp": ("RGB", "RGBA"),
             "gif": ("P", "L"), "bmp": ("1", "L", "P", "RGB")}  # fmt: skip
    kind = list(modes)[int(rng.integers(len(modes)))]
    mode = modes[kind][int(rng.integers(len(modes[kind])))]
    size = tuple(int(n) for n in rng.integers(1, 40, 2))
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65_536, (size[1], size[0])).astype(np.uint16))
    elif mode == "LAB":
        image = Image.frombytes("LAB", size, rng.bytes(3 * size[0] * size[1]))
    else:
        image = image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(0, 10))
    path = folder / f"a.{kind}"
    image.save(path, **({"exif": exif} if kind in ("png", "jpg", "webp", "tif") else {}))
    damaged = rng.random() < 0.7
    if damaged:
        path.write_bytes(fuzz.bits(rng, path.read_bytes()))
    note(f"{kind} {mode} {size}{' damaged' * damaged}")
    errors = []
    for read in (lambda: open_image(path), lambda: open_image(path, "RGBA", size), lambda: open_labels(path)):
        try:
            found = read()
            assert not isinstance(found, Image.Image) or found.mode in ("RGB", "RGBA")
        except UserError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def boxes(spec: str) -> Callable[[pathlib.Path], None]:
    """Reads a set of boxes as an evaluation does."""

    def use(folder: pathlib.Path) -> None:
        log = silent()
        source = registry.queries(spec.format(folder), str(folder), SELECT, log)
        for record in walk(source, log):
            assert len(record["boxes"]) == len(record["query_text"]) and all(map(str.strip, record["query_text"]))
            assert np.isfinite(record["boxes"]).all() and record["image"].dtype == np.uint8

    return use


def maps(load: Callable[[pathlib.Path, BadRecordLog], object]) -> Callable[[pathlib.Path], None]:
    """Reads a set of labels or points as an evaluation does."""

    def use(folder: pathlib.Path) -> None:
        log = silent()
        for record in walk(load(folder, log), log):
            assert "points" in record or record["labels"].shape == record["image"].shape[:2]

    return use


def scenes(cutouts: str, backgrounds: str) -> Callable[[pathlib.Path], None]:
    """Draws scenes of a source of cut-outs and one of backgrounds."""

    def use(folder: pathlib.Path) -> None:
        options = {"cutouts": cutouts.format(folder), "backgrounds": backgrounds.format(folder), "split": "all"}
        source = Scenes(scene_config(options, BoxCodec(64, 8), smallest=(3,)), 0, 4)
        source.bad_records = source.backgrounds.bad_records = silent()
        for k in range(4):
            assert source[k]["image"].shape == (64, 64, 3)

    return use


def label_folder(folder: pathlib.Path) -> None:
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for k in range(2):
        layouts.photo(folder / "images" / f"{k}.jpg", k)
        layouts.grey(folder / "labels" / f"{k}.png", layouts.quarters(0, 1, 2, 255))
    (folder / "classes.txt").write_text("cat\ndog\n")
    (folder / "points.csv").write_text("ImageId,X,Y,Label,EstimatedYesNo\n0,0.5,0.5,cat,yes\n1,0.1,0.9,dog,no\n")


def packed(folder: pathlib.Path) -> None:
    layouts.xpaste(folder / "pool")
    packing.pack_cutouts(f"xpaste:{folder / 'pool'}", folder / "cutouts", 32, silent())
    layouts.bg20k(folder / "bg")
    packing.pack_backgrounds(f"folder:{folder / 'bg'}", folder / "backgrounds", 32, silent())
    for name in ("pool", "bg"):
        shutil.rmtree(folder / name)


def pool(folder: pathlib.Path) -> None:
    layouts.xpaste(folder)
    layouts.bg20k(folder / "bg")


def own_coco(folder: pathlib.Path) -> None:
    layouts.coco(folder, "mine", file_prefix="mine/")


# name -> what writes a good one, and what is done with it
SETS = {
    "coco": (layouts.coco, boxes("coco")),
    "own": (own_coco, boxes("coco:{}/annotations/instances_mine.json")),
    "lvis": (layouts.lvis, boxes("lvis")),
    "pvoc": (layouts.voc2007, boxes("pvoc")),
    "refcoco": (layouts.refcoco, boxes("refcoco")),
    "voc": (layouts.voc2012, maps(lambda folder, log: registry.load("voc", folder, log))),
    "coco_object": (layouts.coco, maps(lambda folder, log: registry.load("coco_object", folder, log))),
    "openimages": (layouts.openimages, maps(lambda folder, log: registry.load("openimages", folder, log))),
    "labels": (label_folder, maps(lambda folder, log: sources.label_folder(folder))),
    "points": (label_folder, maps(sources.point_folder)),
    "packed": (packed, scenes("packed:{}/cutouts", "packed:{}/backgrounds")),
    "xpaste": (pool, scenes("xpaste:{}/pool.json", "folder:{}/bg")),
    "folder": (pool, scenes("folder:{}/images", "folder:{}/bg")),
}  # fmt: skip


def load_clip(folder: pathlib.Path) -> None:
    model = pretrained.load(folder)
    model.tokenize(["A photo of a cat."])


def load_any_vlm(folder: pathlib.Path) -> None:
    vlm, _ = load_vlm(folder)
    vlm.tokenize([vlm.frame.prompt("In the image is a cat located at")])


def load_openflamingo(folder: pathlib.Path) -> None:
    checkpoint, lm, vision = (
        folder / name for name in ("OpenFlamingo-3B-vitl-mpt1b", "mpt-1b-redpajama-200b", "clip-vit-large-patch14")
    )
    vlm, _ = load_vlm(checkpoint / "checkpoint.pt", language_model=str(lm), vision=str(vision))
    vlm.tokenize([vlm.frame.prompt("In the image is a cat located at")])


def models(top: pathlib.Path, clip: pathlib.Path) -> dict[str, tuple[pathlib.Path, Callable[[pathlib.Path], object]]]:
    """Folders of models, and how each is read; `insert` is an adapter's."""
    vlm_folder = write_vlm(top / "vlm")
    found = {"clip": (clip, load_clip), "vlm": (vlm_folder, load_any_vlm)}
    for kind in ("opt", "t5"):
        found[f"blip2 {kind}"] = tiny_blip2.write(top / kind, kind), load_any_vlm
    published_models.openflamingo(top / "openflamingo")
    found["openflamingo"] = top / "openflamingo", load_openflamingo
    gem_models.write_open_clip(top / "open_clip", gem_models.arrays(), True)
    found["open_clip"] = top / "open_clip", lambda folder: pretrained.load(folder)
    vlm, _ = load_vlm(vlm_folder)
    config = config_for(vlm_folder)
    method = methods.build("pin", vlm.model.config, config.method_options)
    (top / "insert").mkdir()
    adapters.save(top / "insert" / "insert.safetensors", jax.device_get(method.init(jax.random.key(0))), config, vlm)
    found["insert"] = top / "insert", lambda folder: adapters.load(folder / "insert.safetensors", vlm)
    return found


@pytest.fixture(scope="module")
def good(tmp_path_factory, clip_folder):  # noqa: F811
    """Good inputs by name, each a folder and what is done with a damaged copy of it."""
    top = tmp_path_factory.mktemp("good")
    found = {}
    for name, (write, use) in SETS.items():
        (top / name).mkdir()
        write(top / name)
        found[name] = top / name, use
    return found | models(top, clip_folder)


# --- the test ---------------------------------------------------------------------------------------------------------

# share of the inputs; models and inserts take tenths of a second each
MODELS = ["clip", "vlm", "blip2 opt", "blip2 t5", "openflamingo", "open_clip"]
KINDS = {"config": 0.4, "picture": 0.25, "set": 0.2, "model": 0.1, "insert": 0.05}


def release(folder: pathlib.Path) -> None:
    """Ends the wait of whoever reads a FIFO of a folder, so that the test can say so."""
    for path in folder.rglob("*"):
        if path.is_fifo():
            os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


def one(number: int, good: dict, tmp: pathlib.Path) -> str | None:
    """Makes an input and uses it; what was wrong with its end, or None."""
    rng = np.random.default_rng([SEED, number])
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    folder, said, begin = tmp / str(number), [kind], time.monotonic()
    timer = threading.Timer(LIMIT, release, [folder])
    timer.start()
    try:
        if kind in ("config", "picture"):
            folder.mkdir()
            {"config": random_config, "picture": random_picture}[kind](rng, folder, said.append)
        else:
            names = {"set": list(SETS), "model": MODELS, "insert": ["insert"]}[kind]
            name = names[int(rng.integers(len(names)))]
            source, use = good[name]
            fuzz.linked(source, folder)
            said += [name, fuzz.damage(rng, folder)]
            use(folder)
    except UserError as error:
        line = str(error)
        if "\n" in line or not line.strip() or len(line) > LONGEST_LINE:
            return f"{number} ({' '.join(said)}): a line of {len(line)} letters: {line[:200]!r}"
    except Exception:
        last = traceback.format_exc().strip().splitlines()
        return f"{number} ({' '.join(said)}): {last[-1][:200]} at {' '.join(last[-3].split())[:120]}"
    finally:
        timer.cancel()
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - begin
    return f"{number} ({' '.join(said)}): took {seconds:.0f} s" if seconds > LIMIT else None


def fuzzed(count: int, good: dict, tmp: pathlib.Path) -> None:
    print(f"FUZZ_SEED={SEED}, {count} inputs")
    wrong = [said for number in range(count) if (said := one(number, good, tmp))]
    assert not wrong, f"FUZZ_SEED={SEED}: {len(wrong)} of {count} end otherwise:\n" + "\n".join(wrong[:40])


def test_damaged_inputs_end_in_success_or_one_line(good, tmp_path):
    for name, (folder, use) in good.items():  # what is not damaged is read
        use(fuzz.linked(folder, tmp_path / name.replace(" ", "_")))
    fuzzed(300, good, tmp_path)


@pytest.mark.heavy  # half an hour
def test_many_damaged_inputs(good, tmp_path):
    fuzzed(5000, good, tmp_path)
