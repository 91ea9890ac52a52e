"""Evaluation: ask a VLM for every object of held-out scenes, read the boxes it writes, score them beside baselines."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import prompts
from input_pipeline.questions import IMAGE_TAG
from input_pipeline.scenes import Scenes, scene_config
from pin_jax import decode, metrics, reporting
from pin_jax.context import Context, Example, box_examples
from pin_jax.models.flamingo import Inserts
from pin_jax.vlm import VLM

COLUMNS = ("mIoU", "mIoU_M", "mIoU_L", "P@0.5", "unparsed", "queries", "asked_iou", "other_iou")
RANDOM_DRAWS = 200


@dataclasses.dataclass
class Query:
    """One box question.

    Attributes:
      image: index of the scene. name: what is asked for. box: float[4], the truth in pixels.
      others: float[k, 4], the image's other objects.
    """

    image: int
    name: str
    box: np.ndarray
    others: np.ndarray


@dataclasses.dataclass
class Answer:
    """What was written: the raw text, the box float[4] read from it, and whether it parsed."""

    text: str
    box: np.ndarray
    parsed: bool


def queries(records: list[dict[str, Any]]) -> list[Query]:
    """Every object of every record is one query."""
    return [
        Query(i, name, box, np.delete(record["boxes"], k, 0))
        for i, record in enumerate(records)
        for k, (name, box) in enumerate(zip(record["said"], record["boxes"], strict=True))
    ]


def ask(
    vlm: VLM,
    vision: np.ndarray,
    asked: list[tuple[int, str]],
    inserts: Inserts,
    options: ConfigDict,
    title: str = "asking",
    context: Context | None = None,
) -> list[str]:
    """Decodes one text for each (image, prompt).

    Args:
      vision: float[images, N, D].
      asked: index of the image, and the text that the model goes on from (`<image>` is put in front).
      options: config.eval: decoder (`greedy` or `beam`), beams, length_penalty, new_tokens, batch_size.
      context: worked examples in front of each question.

    Returns:
      The new text of each question.
    """
    before = context.text if context else lambda question: ""
    ids, mask = vlm.tokenize([before(i) + IMAGE_TAG + prompt for i, (_, prompt) in enumerate(asked)])
    ids, mask = _bucket(ids, mask, vlm.tokenizer.pad_token_id)
    search = decode.greedy
    extra = {}
    if options.decoder == "beam":
        search, extra = decode.beam, {"beams": options.beams, "length_penalty": options.length_penalty}
    texts: list[str] = []
    size = options.batch_size
    with reporting.progress(title, len(asked), "question") as advance:
        for start in range(0, len(asked), size):
            rows = np.arange(start, start + size).clip(max=len(asked) - 1)  # one batch shape, one compilation
            own = vision[np.array([asked[r][0] for r in rows])]
            media = context.media(rows, own) if context else own[:, None]
            out = search(
                vlm.model, vlm.params, media, ids[rows], mask[rows], inserts,
                steps=options.new_tokens, suppress=vlm.suppressed, **extra,
            )  # fmt: skip
            texts += vlm.tokenizer.batch_decode(np.asarray(out), skip_special_tokens=True)
            advance(min(start + size, len(asked)))
    return texts[: len(asked)]


def _bucket(ids: np.ndarray, mask: np.ndarray, pad: int, multiple: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Pads the prompt length to a multiple, so that a longer name compiles nothing anew."""
    room = -ids.shape[1] % multiple
    return np.pad(ids, [(0, 0), (room, 0)], constant_values=pad), np.pad(mask, [(0, 0), (room, 0)])


def locate(
    vlm: VLM,
    vision: np.ndarray,
    asked: list[tuple[int, str]],
    inserts: Inserts,
    options: ConfigDict,
    title: str,
    context: Context | None = None,
) -> list[Answer]:
    """Asks where each (image, name) is."""
    texts = ask(vlm, vision, [(i, prompts.question(name)) for i, name in asked], inserts, options, title, context)
    return [Answer(text, *vlm.codec.decode(text)) for text in texts]


def scenes(config: ConfigDict, vlm: VLM) -> list[dict[str, Any]]:
    """The evaluation scenes: names and backgrounds that the insert never saw."""
    source = Scenes(
        scene_config(config.scenes, vlm.codec, split=config.eval.split, background_split=config.eval.background_split),
        config.eval.seed,
        config.eval.images,
    )
    return [source[i] for i in range(len(source))]


def pool(config: ConfigDict, vlm: VLM) -> tuple[np.ndarray, list[Example]]:
    """Vision tokens and box examples of config.eval.context_images training scenes, for contexts."""
    source = Scenes(scene_config(config.scenes, vlm.codec, split="train"), config.eval.seed, config.eval.context_images)
    records = [source[i] for i in range(len(source))]
    return encode(vlm, [record["image"] for record in records]), box_examples(records, vlm.codec)


def encode(vlm: VLM, images: list[np.ndarray], batch_size: int = 32) -> np.ndarray:
    """Vision tokens float[images, N, D] of pictures uint8[H, W, 3]."""
    out = []
    for start in range(0, len(images), batch_size):
        chunk = np.stack(images[start : start + batch_size])
        short = batch_size - len(chunk)
        out.append(np.asarray(vlm.encode(np.pad(chunk, [(0, short), (0, 0), (0, 0), (0, 0)])))[: len(chunk)])
    return np.concatenate(out)


def evaluate(
    config: ConfigDict, vlm: VLM, inserts: Inserts
) -> tuple[dict[str, Any], list[dict], list[Query], list[Answer]]:
    """The rows of the table.

    raw: the frozen VLM as it is. N_context: the same after N worked examples, for each N in config.eval.context.
    random: on-grid boxes, the mean of many draws. constant: the best single box for these very queries. pin: the VLM
    with the insert.

    Returns:
      {"raw": scores, ...}, the scenes, the queries, and the answers with the insert.
    """
    records = scenes(config, vlm)
    vision = encode(vlm, [record["image"] for record in records])
    asked = queries(records)
    true, others = np.stack([q.box for q in asked]), [q.others for q in asked]
    size = vlm.codec.image_size

    def score(boxes: np.ndarray, parsed: np.ndarray | None = None) -> dict[str, Any]:
        parsed = np.ones(len(boxes), bool) if parsed is None else parsed
        return metrics.summary(boxes, true, others, parsed, size)

    def answered(answers: list[Answer]) -> dict[str, Any]:
        return score(np.stack([a.box for a in answers]), np.array([a.parsed for a in answers]))

    where = [(q.image, q.name) for q in asked]
    asking = vlm, vision, where, Inserts(), config.eval
    raw = locate(*asking, "asking the raw VLM")
    found = locate(vlm, vision, where, inserts, config.eval, "asking with the insert")
    shown = pool(config, vlm) if config.eval.context else None
    contexts = [Context(*shown, k, config.eval.seed) for k in config.eval.context]
    rng = np.random.default_rng(config.eval.seed)
    draws = [score(metrics.random_boxes(rng, len(asked), vlm.codec)) for _ in range(RANDOM_DRAWS)]
    constant = metrics.constant_box(true, vlm.codec)
    rows = {
        "raw": answered(raw),
        **{
            f"{context.k}_context": answered(locate(*asking, f"asking after {context.k} examples", context))
            for context in contexts
        },
        "random": {
            k: None if draws[0][k] is None else type(draws[0][k])(np.mean([d[k] for d in draws])) for k in draws[0]
        },
        "constant": score(np.tile(constant, (len(asked), 1))) | {"box": constant.tolist()},
        config.method: answered(found),
    }
    rows["raw"]["distinct_boxes"] = len({tuple(a.box.tolist()) for a in raw})
    return rows, records, asked, found


def write_coco(
    workdir: pathlib.Path, records: list[dict], asked: list[Query], answers: list[Answer], size: int
) -> None:
    """Ground truth (COCO annotations) and every prediction (COCO results, with its text and whether it parsed)."""
    names = sorted({q.name for q in asked})
    category = {name: i + 1 for i, name in enumerate(names)}

    def xywh(box: np.ndarray) -> list[float]:
        return [float(v) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1])]

    truth = [
        {"id": k + 1, "image_id": q.image, "category_id": category[q.name], "bbox": xywh(q.box), "iscrowd": 0,
         "area": float((q.box[2] - q.box[0]) * (q.box[3] - q.box[1]))}
        for k, q in enumerate(asked)
    ]  # fmt: skip
    images = [
        {"id": i, "width": size, "height": size, "file_name": f"scene_{r['image_id']}"} for i, r in enumerate(records)
    ]
    reporting.write_json(
        workdir / "ground_truth.json",
        {"images": images, "annotations": truth, "categories": [{"id": i, "name": n} for n, i in category.items()]},
    )
    found = [
        {"image_id": q.image, "category_id": category[q.name], "bbox": xywh(a.box), "score": 1.0,
         "name": q.name, "text": a.text, "parsed": bool(a.parsed)}
        for q, a in zip(asked, answers, strict=True)
    ]  # fmt: skip
    reporting.write_json(workdir / "predictions.json", found)


def devices() -> str:
    """What the run ran on, for results.json."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
