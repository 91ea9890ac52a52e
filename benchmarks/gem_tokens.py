"""What GEM's temperature is, block by block, and how alike tokens of one object and of two are, on the small CLIP.

  python benchmarks/gem_tokens.py [--model FOLDER] [--out docs/results/gem_tokens.json]

beta = d^-0.5 mean |LN1(x)| of each block, as GEM has it; then for plain CLIP, CLIP Surgery and GEM the mean cosine of
the last tokens of two patches of one object, and of one of each of two objects, over scenes of a seed of their own. A
patch is an object's where its mask covers more than half of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from configs import gem_clip  # noqa: E402
from gem_jax import pretrained, programs  # noqa: E402
from gem_jax.gem import GEM  # noqa: E402
from pin_jax.models.layers import unit_length  # noqa: E402
from pin_jax.models.vit import ViT, normalise  # noqa: E402
from pin_jax.runtime import files, reporting  # noqa: E402

METHODS = {"clip": {}, "clip_surgery": {}, "gem": {}, "gem temperature=10": {"temperature": 10.0}}


def betas(model: pretrained.ImageText, images: np.ndarray) -> list[float]:
    """The adaptive temperature of every block, the mean over images."""
    config, params = model.config.vision, model.params["vision"]
    pixels, found = normalise(jnp.asarray(images), model.mean, model.std), []
    for k in range(config.depth):
        short = dataclasses.replace(config, depth=max(k, 1), post_norm=False)
        own = {name: value for name, value in params.items() if name != "post_norm"}
        if k:
            own |= {"blocks": jax.tree.map(lambda leaf, k=k: leaf[:k], params["blocks"])}
            x = ViT(short).apply({"params": own}, pixels).tokens  # pyright: ignore[reportAttributeAccessIssue]
        else:  # what the first block reads: a block whose outputs are silenced adds nothing
            own |= {"blocks": jax.tree.map(lambda leaf: jnp.zeros_like(leaf[:1]), params["blocks"])}
            x = ViT(short).apply({"params": own}, pixels).tokens  # pyright: ignore[reportAttributeAccessIssue]
        norm = jax.tree.map(lambda leaf, k=k: leaf[k], params["blocks"]["norm_1"])
        centred = x - x.mean(-1, keepdims=True)
        y = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + config.eps) * norm["scale"] + norm["bias"]
        found.append(float(jnp.linalg.norm(y, axis=-1).mean() * (config.width // config.heads) ** -0.5))
    return found


def cosines(gem: GEM, records: list[dict], images: np.ndarray) -> tuple[float, float]:
    """Mean cosine of two tokens of one object, and of one of each of two objects."""
    pixels = normalise(jnp.asarray(images), gem.model.mean, gem.model.std)
    patch, one, two = gem.cell, [], []
    for record, tokens in zip(records, gem.image_tokens(pixels)[0], strict=True):
        masks = np.asarray(record["masks"], np.float32)
        rows, columns = masks.shape[1] // patch, masks.shape[2] // patch
        covered = masks.reshape(len(masks), rows, patch, columns, patch).mean((2, 4)).reshape(len(masks), -1) > 0.5
        unit = np.asarray(unit_length(tokens[-rows * columns :]))
        alike = unit @ unit.T
        for i, mine in enumerate(covered):
            if mine.sum() > 1:
                own = alike[mine][:, mine]
                one.append(own[~np.eye(len(own), dtype=bool)].mean())
            for other in covered[i + 1 :]:
                if mine.any() and other.any():
                    two.append(alike[mine][:, other].mean())
    return float(np.mean(one)), float(np.mean(two))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="assets/tiny_clip")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--out", default="")
    args = parser.parse_args()
    config = gem_clip.get_config("tiny")
    config.eval.update({"images": args.images, "seed": 5_000_000})
    model = pretrained.load(args.model)
    source = programs.scenes(config, model, 0)
    records = list(source)
    images = np.stack([record["image"] for record in records])
    result: dict = {
        "command": " ".join(sys.argv), "date": time.strftime("%Y-%m-%d"), "versions": reporting.versions(),
        "beta by block": [round(beta, 3) for beta in betas(model, images)], "cosine": {},
    }  # fmt: skip
    for name, options in METHODS.items():
        gem = GEM(model, attention=name.split()[0], size=images.shape[1], **options)
        one, two = cosines(gem, records, images)
        result["cosine"][name] = {"one object": round(one, 3), "two objects": round(two, 3)}
    print(json.dumps(result, indent=1))
    if args.out:
        files.write_json(pathlib.Path(args.out), result)


if __name__ == "__main__":
    main()
