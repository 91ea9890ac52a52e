"""Speed of the training data: samples a second and core, from prepared data and from plain files, on the same machine.

A sample is a scene of 3 pasted objects at 224 px with its tokenised box question, by the published recipe. The plain
side is a PIL implementation of the same recipe: photographs and cut-outs are opened, resized and pasted one by one, and
texts are tokenised one by one. Files of BG-20k's and X-Paste's sizes are made of photographs in pip packages and of
twemoji art.

python benchmarks/input_pipeline.py [--out results.json] [--samples 100000]
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import flags
from PIL import Image

sys.path[0] = str(pathlib.Path(__file__).parent.parent)  # not this folder, in which a file is called as the package is
from input_pipeline.loader import batches  # noqa: E402
from input_pipeline.pasted import backgrounds, cutouts, packing  # noqa: E402
from input_pipeline.pasted.scenes import SceneConfig, Scenes  # noqa: E402
from input_pipeline.sets.bad_records import BadRecordLog  # noqa: E402
from input_pipeline.text.box_codec import BoxCodec  # noqa: E402
from input_pipeline.text.prompts import Frame, question  # noqa: E402
from input_pipeline.text.questions import BoxQuestions  # noqa: E402

PHOTO, CUTOUT = (1600, 1066), 512  # pixels, about those of BG-20k and X-Paste
LENGTH, BATCH = 32, 64


def tokenizer():
    """The small VLM's, read without JAX."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(pathlib.Path(__file__).parent.parent / "assets" / "tiny_flamingo")


def write_files(root: pathlib.Path, photos: int, names: int, each: int) -> None:
    """A folder of large JPEGs, and one folder of large RGBA PNGs a name."""
    source, rng = backgrounds.load("photos", crop=0.5), np.random.default_rng(0)
    (root / "photos").mkdir(parents=True)
    for k in range(photos):
        picture = source.draw(rng, PHOTO[0]).crop((0, 0, *PHOTO))
        picture.save(root / "photos" / f"{k:05d}.jpg", quality=90)
    art = cutouts.load("twemoji")
    for k in range(names):
        name, picture = art[k]
        for i in range(each):
            width = int(CUTOUT * rng.uniform(0.4, 1))
            pixels = np.asarray(picture.resize((width, CUTOUT), Image.Resampling.BICUBIC)).astype(np.int16)
            pixels[..., :3] += rng.integers(-20, 20, (*pixels.shape[:2], 1)).astype(
                np.int16
            )  # as hard to pack as photos
            (root / "cutouts" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGBA").save(root / "cutouts" / name / f"{i}.png")


class Plain:
    """The recipe written plainly with PIL, file by file; knows nothing of the project's classes."""

    def __init__(self, root: pathlib.Path, words):
        self.photos = sorted((root / "photos").glob("*.jpg"))
        self.cutouts = {p.name: sorted(p.glob("*.png")) for p in sorted((root / "cutouts").iterdir())}
        self.words = words

    def sample(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """uint8[224, 224, 3] and token ids."""
        canvas = Image.open(self.photos[rng.integers(len(self.photos))]).convert("RGB").resize((224, 224))
        names, boxes = [], []
        for name in rng.choice(list(self.cutouts), 3, replace=False):
            files = self.cutouts[name]
            picture = Image.open(files[rng.integers(len(files))]).convert("RGBA")
            picture = picture.crop(picture.getchannel("A").getbbox())
            aspect = picture.width / picture.height
            for attempt in range(11):
                s = int(rng.integers(2, 16)) if attempt < 10 else 2
                w, h = (s + 1, max(1, round(s / aspect)) + 1) if aspect >= 1 else (max(1, round(s * aspect)) + 1, s + 1)
                x, y = int(rng.integers(0, 17 - w)), int(rng.integers(0, 17 - h))
                box, total = (x, y, x + w, y + h), 0.0
                for other in boxes:
                    a = max(0, min(box[2], other[2]) - max(x, other[0])) * max(
                        0, min(box[3], other[3]) - max(y, other[1])
                    )
                    total += a / min(w * h, (other[2] - other[0]) * (other[3] - other[1]))
                if total <= 0.5:
                    break
            boxes.append(box)
            names.append(str(name))
            sprite = picture.resize((14 * w, 14 * h), Image.Resampling.BILINEAR)
            canvas.paste(sprite, (14 * x, 14 * y), sprite)
        asked = int(rng.integers(3))
        frame, text = Frame(), ",".join(str(14 * v) for v in boxes[asked])
        prompt = self.words(frame.prompt(question(names[asked])), add_special_tokens=False)["input_ids"]
        answer = self.words(f" [{text}]{frame.suffix}", add_special_tokens=False)["input_ids"]
        ids = np.zeros(LENGTH, np.int32)
        ids[: len(prompt) + len(answer)] = (prompt + answer)[:LENGTH]
        return np.asarray(canvas), ids


def scenes(cut: str, back: str, length: int) -> Scenes:
    """Training scenes of 3 objects, as published."""
    return Scenes(SceneConfig(cutouts=cut, backgrounds=back, split="all", objects=(3, 3)), 0, length)


def pace(work, seconds: float) -> dict[str, float]:
    """Calls work() again and again: samples a second of the clock, and of this process's CPU time."""
    work()
    done, begin, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        done += work()
    wall, cpu = time.perf_counter() - begin, time.process_time() - used
    return {"a_second": done / wall, "a_cpu_second": done / cpu, "samples": done}


def one_by_one(source: Scenes, texts: BoxQuestions):
    """A function that makes the next sample, without grain."""
    state = {"next": 0}

    def work() -> int:
        k = state["next"] = state["next"] + 1
        texts.random_map(source[k % len(source)], np.random.default_rng(k))
        return 1

    return work


def through_grain(source: Scenes, texts: BoxQuestions, workers: int, threads: int, seconds: float) -> float:
    """Samples a second of the clock through the pipeline of training."""
    iterator = batches(source, [texts], BATCH, shuffle=False, workers=workers, threads=threads)
    for _ in range(4 * max(1, workers)):  # workers have started and buffers are full
        next(iterator)
    done, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        done += len(next(iterator)["ids"])
    return done / (time.perf_counter() - begin)


def resident() -> float:
    """Resident memory of this process, MiB."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(source: Scenes, texts: BoxQuestions, samples: int) -> list[dict[str, float]]:
    """Resident memory at every tenth of a run over so many samples."""
    work, rows = one_by_one(source, texts), []
    for k in range(1, samples + 1):
        work()
        if k % max(1, samples // 10) == 0:
            rows.append({"samples": k, "MiB": round(resident(), 1)})
    return rows


def own_process(arguments: list[str]) -> dict:
    """A part of the benchmark in a process of its own: workers and memory must not see another part's."""
    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--samples", type=int, default=100_000, help="of the memory test")
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--names", type=int, default=100)
    parser.add_argument("--each", type=int, default=5, help="cut-outs of a name")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=pathlib.Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    flags.FLAGS(sys.argv[:1])  # grain's workers ask for its flags
    texts = BoxQuestions(tokenizer(), BoxCodec(224, 16), 1, LENGTH)
    if given.part:
        spec = [f"packed:{given.root / kind}" for kind in ("cutouts", "backgrounds")]
        source = scenes(*spec, 10_000_000)
        if given.part == "memory":
            print(json.dumps({"memory": memory(source, texts, given.samples)}))
        else:
            workers, threads = map(int, given.part.split(","))
            print(json.dumps({"a_second": through_grain(source, texts, workers, threads, given.seconds)}))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        begin = time.perf_counter()
        write_files(root, given.photos, given.names, given.each)
        print(f"files made in {time.perf_counter() - begin:.0f} s", flush=True)
        begin = time.perf_counter()
        packing.pack_backgrounds(
            f"folder:{root / 'photos'}", root / "packed" / "backgrounds", 224, BadRecordLog("refuse")
        )
        packing.pack_cutouts(f"folder:{root / 'cutouts'}", root / "packed" / "cutouts", 224, BadRecordLog("refuse"))
        packed_in = time.perf_counter() - begin
        spec = [f"packed:{root / 'packed' / kind}" for kind in ("cutouts", "backgrounds")]
        plain, rng = Plain(root, texts.tokenizer), np.random.default_rng(0)
        sides = {
            "plain PIL, the same files": pace(lambda: bool(plain.sample(rng)), given.seconds),
            "this project, files": pace(
                one_by_one(scenes(f"folder:{root / 'cutouts'}", f"folder:{root / 'photos'}", 10**7), texts),
                given.seconds,
            ),
            "this project, prepared": pace(one_by_one(scenes(*spec, 10**7), texts), given.seconds),
        }
        part = ["--root", str(root / "packed"), "--seconds", str(given.seconds), "--samples", str(given.samples)]
        grain = {
            f"{workers} workers" if workers else f"{threads} threads": own_process(
                [*part, "--part", f"{workers},{threads}"]
            )["a_second"]
            for workers, threads in ((0, 1), (0, 2), (1, 1), (2, 1))
        }
        held = own_process([*part, "--part", "memory"])["memory"]
    first, last = sides["plain PIL, the same files"], sides["this project, prepared"]
    results = {
        "samples": "3 pasted objects, 224 px, one tokenised box question",
        "sides": sides,
        "prepared_over_plain": last["a_cpu_second"] / first["a_cpu_second"],
        "through_grain_a_second": grain,
        "second_worker": grain["2 workers"] / grain["1 workers"],
        "memory": held,
        "files": {"photos": given.photos, "photo_px": PHOTO, "cutouts": given.names * given.each, "cutout_px": CUTOUT,
                  "packed_in_seconds": packed_in},
        "machine": {"processor": platform.processor(), "cores": os.cpu_count(), "load": os.getloadavg()},
    }  # fmt: skip
    for name, row in sides.items():
        print(f"{name}: {row['a_second']:,.0f} a second, {row['a_cpu_second']:,.0f} a second and core")
    print(f"prepared over plain: {results['prepared_over_plain']:.1f} times")
    for name, value in grain.items():
        print(f"through grain, {name}: {value:,.0f} a second")
    print("memory: " + ", ".join(f"{row['samples']:,}: {row['MiB']:.0f} MiB" for row in held))
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
