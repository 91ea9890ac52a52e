"""Tells whether an insert can move a VLM (`config.run=diagnose`): attention, gradients, and the size of psi."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.text.prompts import article
from pin_jax import adapters, evaluate, methods
from pin_jax.models.base import ImagesInText
from pin_jax.models.interface import Inserts
from pin_jax.runtime import files, reporting
from pin_jax.runtime.files import AnyPath
from pin_jax.scoring import diagnosis, queries
from pin_jax.vlm import VLM

TEXTS = 32  # that are looked at, each of another image


def run(config: ConfigDict, workdir: AnyPath, vlm: VLM, path: AnyPath | None) -> dict[str, Any]:
    """Looks at the first evaluation scenes with an insert, or with the method as it starts; writes diagnosis.json."""
    if path is None:
        method = methods.build(config.method, vlm.model.config, config.method_options)
        params = method.init(jax.random.key(config.seed), vlm.params)
    else:
        method, params = adapters.load(path, vlm, config.method)
    config.eval.images = min(config.eval.images, TEXTS)
    records = evaluate.scenes(config, vlm)
    every = queries.of_records(records)
    asked = list({query.image: query for query in every}.values())
    inserts = method.inserts(params)
    vision = evaluate.encode(vlm, [records[query.image]["image"] for query in asked], inserts=inserts)
    before = [f" {article(query.name)}" for query in asked]
    boxes = [vlm.codec.encode(vlm.codec.to_cells(query.box)) for query in asked]
    # The same questions behind a text that says where everything is: whether numbers can be looked up by name at all.
    said = [
        " ".join(
            f"In the image is {article(q.name)} {q.name} located at{vlm.codec.encode(vlm.codec.to_cells(q.box))}."
            for q in every
            if q.image == one.image
        )
        for one in asked
    ]
    told = diagnosis.encode(
        vlm.tokenizer, vlm.frame,
        [(f"{text} In the image is{a}", f" {q.name}", " located at", box)
         for text, a, q, box in zip(said, before, asked, boxes, strict=True)],
        True,
    )  # fmt: skip
    texts = {
        "numbers of a box": diagnosis.encode(
            vlm.tokenizer, vlm.frame,
            [(f"In the image is{a}", f" {q.name}", " located at", box)
             for a, q, box in zip(before, asked, boxes, strict=True)],
            True,
        ),
        "names in a caption": diagnosis.encode(
            vlm.tokenizer, vlm.frame,
            [(f"A photo of{a}", "", "", f" {q.name}") for a, q in zip(before, asked, strict=True)],
            False,
        ),
    }  # fmt: skip
    reached = {
        key: diagnosis.gradients(vlm.model, vlm.params, method, params, vision, text) for key, text in texts.items()
    }
    own = Inserts() if inserts.in_vision else inserts  # those are in `vision` already
    looks = diagnosis.attention(vlm.model, vlm.params, own, vision, texts["numbers of a box"])
    answered = {"asked": texts["numbers of a box"]}
    if told.inputs["ids"].shape[1] <= getattr(vlm.model.config.lm, "positions", np.inf):
        answered["asked behind a text that says it"] = told
    likely = {key: diagnosis.likelihood(vlm.model, vlm.params, own, vision, text) for key, text in answered.items()}
    # An oracle at each joint: in the places of the image, and at the vision tokens.
    if isinstance(vlm.model, ImagesInText):
        says = [f" {article(q.name)} {q.name} located at{box}." for q, box in zip(asked, boxes, strict=True)]
        likely["asked, with a text that says it in the image's places"] = diagnosis.in_place_of_images(
            vlm.model, vlm.params, own, vision, texts["numbers of a box"],
            vlm.tokenizer(says, add_special_tokens=False)["input_ids"],
        )  # fmt: skip
    likely["asked, each image's vision tokens fitted to its answer"] = diagnosis.fitted(
        vlm.model, vlm.params, own, vision, texts["numbers of a box"]
    )
    psi = None if inserts.vision_output is None else np.linalg.norm(np.asarray(inserts.vision_output), axis=1).mean()
    tokens = np.linalg.norm(vision, axis=-1).mean()
    content = None if psi is None else diagnosis.kept(vlm.model, vlm.params, inserts, vision)
    title = f"gradient of a token's log-likelihood, norms, {len(asked)} images"
    reporting.results_table(title, reached, ("media", "vision", "shared", "insert"))
    rows = {f"attention {i + 1}": row for i, row in enumerate(looks)}
    reporting.results_table("attention from the number places, the best head's share", rows, ("image", "name"))
    found = {
        "gradients": reached,
        "attention": looks,
        "likelihood": likely,
        "psi_norm": None if psi is None else float(psi),
        "token_norm": float(tokens),
        "content_kept": content,
        "verdict": diagnosis.verdict(
            reached["numbers of a box"]["vision"],
            reached["names in a caption"]["vision"],
            float(psi or 0),
            tokens,
            content,
        ),
    }
    for name, value in likely.items():
        reporting.say(f"log-likelihood of a number's token, {name}: {value:.2f}")
    if psi is not None:
        reporting.say(f"|psi| {psi:.2f} a token, beside vision tokens of {tokens:.2f}")
    if content is not None:
        reporting.say(f"what an image says, behind the insert beside without it: correlation {content:.2f}")
    for line in found["verdict"]:
        reporting.say(line)
    files.write_json(workdir / "diagnosis.json", found)
    reporting.say(f"wrote {workdir / 'diagnosis.json'}")
    return found
