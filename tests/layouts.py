"""Small data sets in the exact layouts that their makers publish, written by the tests."""

from __future__ import annotations

import json
import pathlib
import pickle

import numpy as np
from PIL import Image

from input_pipeline import names

SIZE = (64, 48)  # width, height


def photo(path: pathlib.Path, seed: int = 0, size: tuple[int, int] = SIZE, mode: str = "RGB", **options) -> None:
    """A picture of noise on a ramp."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, size[0]).astype(np.uint8)[None, :, None]
    pixels = (ramp + rng.integers(0, 55, (size[1], size[0], 3))).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)


def palette(path: pathlib.Path, labels: np.ndarray) -> None:
    """A label image with a palette, as VOC's are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8), "P")
    image.putpalette(list(np.random.default_rng(0).integers(0, 255, 768)))
    image.save(path)


def grey(path: pathlib.Path, labels: np.ndarray) -> None:
    """A label image in grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8)).save(path)


def write_list(path: pathlib.Path, ids: list[str]) -> None:
    """A list of image ids, a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{i}\n" for i in ids))


def voc_xml(objects: str, size: tuple[int, int] = SIZE, name: str = "x.jpg") -> str:
    """An annotation of VOC with these objects."""
    return (
        f"<annotation><folder>VOC2007</folder><filename>{name}</filename><size><width>{size[0]}</width>"
        f"<height>{size[1]}</height><depth>3</depth></size><segmented>0</segmented>{objects}</annotation>"
    )


def voc_object(name: str, box: tuple[float, ...], difficult: int = 0, extra: str = "") -> str:
    """An object of VOC; box counts from 1, ends inclusive."""
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return (
        f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>{difficult}</difficult>"
        f"<bndbox>{sides}</bndbox>{extra}</object>"
    )


PART = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>"


def voc2007(root: pathlib.Path) -> pathlib.Path:
    """VOCdevkit/VOC2007: one object; a difficult one and a part; four objects; none."""
    top = root / "VOCdevkit" / "VOC2007"
    scenes = {
        "000001": voc_object("dog", (9, 5, 40, 40)),
        "000002": voc_object("person", (1, 1, 64, 48), extra=PART) + voc_object("tvmonitor", (10.5, 10, 30, 30), 1),
        "000003": "".join(voc_object("cat", (1 + 10 * k, 1, 10 + 10 * k, 20)) for k in range(4)),
        "000004": "",
        "000006": voc_object("cat", (3, 3, 30, 30)) + voc_object("cat", (20, 10, 60, 48)),
    }
    write_list(top / "ImageSets" / "Main" / "test.txt", [*scenes])
    (top / "Annotations").mkdir(parents=True)
    for k, (image_id, objects) in enumerate(scenes.items()):
        (top / "Annotations" / f"{image_id}.xml").write_text(voc_xml(objects, name=f"{image_id}.jpg"))
        photo(top / "JPEGImages" / f"{image_id}.jpg", k, mode="L" if k == 4 else "RGB")
    return root


def rle(mask: np.ndarray, compressed: bool) -> dict:
    """Run lengths of a mask as COCO's JSON has them."""
    if compressed:
        from pycocotools.mask import encode

        found = encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": found["size"], "counts": found["counts"].decode()}
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(int), [1 - flat[-1]]])))
    counts = np.diff(np.concatenate([[0], edges])).tolist()
    counts += [flat.size - sum(counts)] if sum(counts) < flat.size else []
    return {"size": list(mask.shape), "counts": counts}


def box_mask(x: int, y: int, w: int, h: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """bool[H, W] of a box."""
    mask = np.zeros((size[1], size[0]), bool)
    mask[y : y + h, x : x + w] = True
    return mask


def coco_annotation(number: int, image: int, category: int, box: tuple, shape: str = "polygon", **more) -> dict:
    """An annotation of COCO whose mask fills its box."""
    x, y, w, h = box
    segmentation = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    if shape != "polygon":
        segmentation = rle(box_mask(*box), shape == "compressed")
    return {
        "id": number, "image_id": image, "category_id": category, "bbox": list(box), "area": w * h,
        "iscrowd": int(shape == "runs"), "segmentation": segmentation,
    } | more  # fmt: skip


def coco(root: pathlib.Path, split: str = "val2017", file_prefix: str = "") -> dict:
    """annotations/instances_SPLIT.json and SPLIT/: polygon, compressed and plain run lengths, crowd, an empty image."""
    table = names.table("coco")
    categories = [
        {"id": int(i), "name": name, "supercategory": "thing"}
        for i, name in zip(table.column("id"), table.column("published"), strict=True)
    ]
    images = [
        {"id": k, "file_name": f"{file_prefix}{k:012d}.jpg", "width": SIZE[0], "height": SIZE[1], "license": 1}
        for k in (139, 285, 632, 724)
    ]
    annotations = [
        coco_annotation(1, 139, 18, (8, 4, 32, 36)),
        coco_annotation(2, 139, 17, (40, 10, 20, 20), "compressed"),
        coco_annotation(900100000285, 285, 1, (0, 0, 64, 24), "runs"),
        coco_annotation(4, 285, 62, (10, 10, 20, 30)),
        *[coco_annotation(10 + k, 632, 44, (10 * k, 5, 9, 20)) for k in range(5)],
    ]
    held = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(held))
    for k in (139, 285, 632, 724):
        photo(root / split / f"{k:012d}.jpg", k, mode={139: "CMYK", 285: "L"}.get(k, "RGB"))
    return held


def lvis(root: pathlib.Path) -> pathlib.Path:
    """lvis_v1_val.json over images of val2017 and train2017, which it names by URL only."""
    images = [
        {"id": 1, "coco_url": "http://images.cocodataset.org/val2017/000000000001.jpg", "width": 64, "height": 48,
         "neg_category_ids": [], "not_exhaustive_category_ids": []},
        {"id": 2, "coco_url": "http://images.cocodataset.org/train2017/000000000002.jpg", "width": 64, "height": 48,
         "neg_category_ids": [], "not_exhaustive_category_ids": []},
    ]  # fmt: skip
    table = names.table("lvis")
    categories = [
        {"id": k + 1, "name": name, "synset": synset, "synonyms": others.split("|"), "frequency": "f"}
        for k, (name, synset, others) in enumerate(table.rows)
    ]
    own = {name: k + 1 for k, name in enumerate(table.column("name"))}
    annotations = [
        coco_annotation(1, 1, own["bus_(vehicle)"], (8, 4, 30, 30)),
        coco_annotation(2, 2, own["aerosol_can"], (4, 4, 20, 30)),
    ]
    for annotation in annotations:
        del annotation["iscrowd"]
    held = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    (root / "lvis").mkdir(parents=True)
    (root / "lvis" / "lvis_v1_val.json").write_text(json.dumps(held))
    photo(root / "val2017" / "000000000001.jpg", 1)
    photo(root / "train2017" / "000000000002.jpg", 2)
    return root


SENTENCES = ("brown dog", "dog at the café", "left person")


def refcoco(
    root: pathlib.Path, which: str = "refcoco", by: str = "unc", split: str = "testA", said: tuple = SENTENCES
) -> list:
    """WHICH/refs(BY).p and instances.json; two sentences about one object, one with a letter beyond ASCII."""
    images = [
        {"id": k, "file_name": f"COCO_train2014_{k:012d}.jpg", "width": 64, "height": 48} for k in (98304, 581857)
    ]
    annotations = [
        coco_annotation(3007, 98304, 18, (4, 4, 30, 40)),
        coco_annotation(1719310, 581857, 1, (2, 3, 20, 30)),
        coco_annotation(1719311, 581857, 1, (30, 3, 30, 40)),
    ]

    def ref(number, annotation, image, chosen, *texts):
        sentences = [
            {"sent": text, "raw": text.title(), "tokens": text.split(), "sent_id": 10 * number + k}
            for k, text in enumerate(texts)
        ]
        return {
            "ref_id": number, "ann_id": annotation, "image_id": image, "category_id": 18, "split": chosen,
            "file_name": f"COCO_train2014_{image:012d}_{number}.jpg", "sentences": sentences,
            "sent_ids": [s["sent_id"] for s in sentences],
        }  # fmt: skip

    refs = [
        ref(1, 3007, 98304, split, *said[:2]),
        ref(2, 1719310, 581857, split, said[2]),
        ref(3, 1719311, 581857, "train", "right person"),
    ]
    top = root / which
    top.mkdir(parents=True)
    (top / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=2))
    categories = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}]
    held = {"images": images, "annotations": annotations, "categories": categories}
    (top / "instances.json").write_text(json.dumps(held))
    for k in (98304, 581857):
        photo(root / "images" / "mscoco" / "images" / "train2014" / f"COCO_train2014_{k:012d}.jpg", k)
    return refs


def quarters(*values: int) -> np.ndarray:
    """int[48, 64]: four values, one a quarter."""
    out = np.zeros((SIZE[1], SIZE[0]), np.int64)
    half = SIZE[1] // 2, SIZE[0] // 2
    out[: half[0], : half[1]], out[: half[0], half[1] :] = values[0], values[1]
    out[half[0] :, : half[1]], out[half[0] :, half[1] :] = values[2], values[3]
    return out


def voc2012(root: pathlib.Path) -> pathlib.Path:
    """VOCdevkit/VOC2012 for segmentation: background, dog (12), cat (8), void."""
    top = root / "VOCdevkit" / "VOC2012"
    write_list(top / "ImageSets" / "Segmentation" / "val.txt", ["2007_000033", "2007_000042"])
    for k, image_id in enumerate(("2007_000033", "2007_000042")):
        photo(top / "JPEGImages" / f"{image_id}.jpg", k)
        palette(top / "SegmentationClass" / f"{image_id}.png", quarters(0, 12, 8, 255))
    return root


def openimages(root: pathlib.Path) -> pathlib.Path:
    """validation/, the CSV of points and the CSV of class names."""
    rows = [
        "ImageId,X,Y,Label,EstimatedYesNo,Source,YesVotes,NoVotes,UnsureVotes",
        "0001eeaf4aed83f9,0.5,0.99,/m/01yrx,yes,cia,3,0,0",
        "0001eeaf4aed83f9,1.0,0.0,/m/01yrx,no,cia,0,3,0",
        "0001eeaf4aed83f9,0.1,0.1,/m/0bt9lr,no,ih,0,3,0",
        "0001eeaf4aed83f9,0.1,0.1,/m/01yrx,unsure,ih,0,0,3",
        "not_here,0.1,0.1,/m/01yrx,yes,ih,3,0,0",
    ]
    root.mkdir(parents=True, exist_ok=True)
    (root / "oidv7-val-annotations-point-labels.csv").write_text("\n".join(rows) + "\n")
    (root / "oidv7-class-descriptions.csv").write_text("LabelName,DisplayName\n/m/01yrx,Cat\n/m/0bt9lr,Dog\n")
    photo(root / "validation" / "0001eeaf4aed83f9.jpg", 3)
    return root
