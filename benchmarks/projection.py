"""What the small SmolVLM's decoder reads out of an image's tokens: words, the projection's start, the projection.

  python main.py --config=configs/tiny_smolvlm.py --workdir=runs/tiny_smolvlm     # first: what is looked at
  python benchmarks/projection.py --workdir runs/tiny_smolvlm --out docs/results/projection_tiny_smolvlm.json

On held-out scenes, in captions with the words before given: nats and share right of the first token of every name.
Rows: embeddings of the words that a caption has for the patches stand in the image's places, with and without the words
in front of the image; the words that stage 1's names say of the patches without a caption; the start of the projection,
alone and behind what refines the encoder's tokens; both at their end. `alike` is the mean cosine with the caption's
words.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from configs import tiny_smolvlm  # noqa: E402
from input_pipeline.pasted.scenes import Scenes, scene_config  # noqa: E402
from input_pipeline.text import captions  # noqa: E402
from pin_jax import evaluate  # noqa: E402
from pin_jax import vlm as vlm_lib  # noqa: E402
from pin_jax.runtime import files, reporting  # noqa: E402
from pin_jax.small import projection, recipe, shape, stage_1, vision  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/tiny_smolvlm"))
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    config = tiny_smolvlm.get_config()
    whole = shape.build(config)
    vlm = vlm_lib.load(options.workdir / config.name)
    model: Any = vlm.model
    lm, tokenizer = vlm.params["lm"], vlm.tokenizer
    drawn = {**config.scenes, **config.language_scenes, "background_split": "held_out", "vary": 0.0}
    scenes = Scenes(scene_config(drawn, vlm.codec), config.eval.seed, options.images)
    records = [scenes[i] for i in range(len(scenes))]
    plain: Any = type(model)(dataclasses.replace(model.config, hidden=0))  # the encoder's tokens, not refined
    encoder = dataclasses.replace(vlm, model=plain)
    seen = evaluate.encode(encoder, [record["image"] for record in records])
    records = [{**record, "vision": tokens} for record, tokens in zip(records, seen, strict=True)]

    bank = recipe.feature_bank(config, options.workdir, whole, vlm.params["vision"])
    heads = stage_1.train_names(config, options.workdir, whole, bank, "names of tokens")
    embedding = np.asarray(lm["embedding"])
    held = projection.vocabulary(whole, heads, embedding)
    captioned = vision.BagOfWords(whole.names, config.language_scenes.objects[1])
    in_caption = np.stack([captioned.map(record)["names"] for record in records])
    every = np.tile(np.arange(len(whole.names)), (len(records), 1))
    target, named = (np.asarray(x) for x in projection.named(whole, held, jnp.asarray(seen), in_caption))
    alone = np.asarray(projection.named(whole, held, jnp.asarray(seen), every)[0])

    def read(module, media, texts):
        x, _ = module.read(media[:, None], texts["ids"])
        mask = texts["ids"] != module.config.pad_token
        return module.lm.predict(x, mask, texts, module.never_predicted(1))

    @jax.jit
    def first_tokens(lm, media, texts):
        logits, labels, weights = model.apply({"params": {"lm": lm}}, media, texts, method=read)
        cost = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]
        name = weights == captions.NAME
        return (cost * name).sum() / name.sum(), ((logits.argmax(-1) == labels) & name).sum() / name.sum()

    def row(media: np.ndarray, frame: Any = vlm.frame) -> dict[str, float]:
        texts = captions.Sentences(tokenizer, frame, config.text_length, 0)
        rows = [texts.random_map(record, np.random.default_rng(i)) for i, record in enumerate(records)]
        batch = {key: jnp.stack([row[key] for row in rows]) for key in ("ids", "target")}
        nats, right = first_tokens(lm, jnp.asarray(media, jnp.float32), batch)
        norms = np.linalg.norm(media[named], axis=-1) * np.linalg.norm(target[named], axis=-1)
        return {
            "nats": float(nats),
            "right": float(right),
            "alike": float(((media * target)[named].sum(-1) / norms).mean()),
        }

    def media_of(params: Any, hidden: int) -> np.ndarray:
        own = type(model)(dataclasses.replace(model.config, hidden=hidden))
        return np.asarray(own.apply({"params": params}, seen, method=projection.media_of))

    def start(hidden: int) -> np.ndarray:
        own = config.copy_and_resolve_references()
        own.projection.hidden = hidden
        folder = options.workdir if hidden == config.projection.hidden else options.workdir / f"hidden_{hidden}"
        return media_of(projection.train_start(own, folder, shape.build(own), bank, heads, embedding), hidden)

    bare = dataclasses.replace(vlm.frame, prefix=vlm.frame.prefix.replace(shape.SAID, ""))
    trained = {key: value for key, value in vlm.params.items() if key in ("refine", "projection")}
    rows = {
        "words of the caption, nothing in front": row(target, bare),
        "words of the caption": row(target),
        "words of stage 1's names": row(alone),
        "start, not refined": row(start(0)),
        "start": row(start(config.projection.hidden)),
        "projection": row(media_of(trained, model.config.hidden)),
    }
    reporting.results_table(f"first tokens of names, {len(records)} held-out scenes", rows, ("nats", "right", "alike"))
    if options.out:
        kept = {
            "rows": rows,
            "scenes": len(records),
            "date": time.strftime("%Y-%m-%d"),
            "versions": reporting.versions(),
        }
        files.write_json(options.out, kept)


if __name__ == "__main__":
    main()
