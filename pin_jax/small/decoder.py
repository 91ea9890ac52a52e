"""Trains the small BLIP-2's decoder alone, behind words or behind queries, and on numbers in words beside them."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.loader import batches
from input_pipeline.text import captions
from pin_jax.models.language.opt import OPT
from pin_jax.runtime.train_stage import adamw, train_stage
from pin_jax.small import numbers, queries, stage_1, words
from pin_jax.small.shape import Shape


@dataclasses.dataclass
class Decoder:
    """What the decoder of the small BLIP-2 is trained on and over.

    Attributes:
      params: `lm`, and what is thrown away: `codes` and `heads` (see `small.numbers`).
      held: what queries are made of, in words, and where codes lie. bank: drawn scenes as queries.
    """

    params: Any
    held: tuple[words.QueryWords, numbers.CodeSpace]
    bank: queries.QueryBank


def start(config: ConfigDict, workdir: pathlib.Path, shape: Shape, bank: Any, params: Any, title: str) -> Decoder:
    """Measures the queries that a Q-Former makes, and starts what is to read numbers beside them.

    Args:
      bank: scene records with vision tokens. params: of the whole VLM. title: of the stage.
    """
    fused = {"params": {name: params[name] for name in ("qformer", "projection")}}

    @jax.jit
    def read(tokens):
        fusion: Any = shape.model.apply(fused, tokens[:, None], method="fuse")
        return fusion[:, 0]

    said = queries.QueryBank(bank, read)
    made_of = words.fit_words(
        stage_1.bag_of_words(shape, frozen=True),
        stage_1.train_names(config, workdir, shape, said, f"names of queries for {title}"),
        said,
        shape.names,
        config.measured_images,
    )
    space = numbers.CodeSpace(
        numbers.passed_directions(read, np.stack([bank[i]["vision"] for i in range(8)])),
        jnp.linalg.norm(made_of.looks, axis=-1).max(1).mean(),  # that of the looks that show most
    )
    ids, lm = shape.tokenizer.convert_tokens_to_ids, params["lm"]
    pairs = [(ids(a), ids(b)) for a, b in ((" looking", " located"), (" like", " at"))]
    lm = {**lm, "embedding": numbers.start_alike(lm["embedding"], pairs)}
    codes = numbers.start_codes(jax.random.key(config.seed + 3), config.grid + 1, space.basis.shape[1])
    state = {"lm": lm, "codes": codes, "heads": numbers.start_heads(config.lm.width, config.grid + 1)}
    return Decoder(state, (made_of, space), said)


def data(config: ConfigDict, shape: Shape, decoder: Decoder, part: Any, phase: Any):
    """Where the samples of one phase come from: a source, and what makes samples of its records.

    Args:
      part: of the config: texts, batch, number_rows and phases; behind_words: imagined scenes behind prefixes of words
        instead of drawn ones behind their queries. phase: its steps and the options of its numbers.
    """
    texts = captions.CaptionTexts(shape.tokenizer, shape.names, shape.codec, config.text_length, image="", **part.texts)
    made_of, count = decoder.held[0], config.qformer.queries
    rows = len(made_of.objects), len(made_of.residual), len(made_of.background)
    number_texts = numbers.NumberTexts(
        shape.tokenizer, shape.names, shape.codec, count, rows, part.number_rows, config.text_length - 1,
        **phase["numbers"],
    )  # fmt: skip
    if not part.behind_words:
        return decoder.bank, [texts, number_texts]
    total = sum(p["steps"] for p in part.phases) * part.batch
    said = words.Said(shape.names, tuple(config.language_scenes.objects), total, config.seed + 200)
    return said, [words.Prefixes(texts, count, rows), number_texts]


def train(config: ConfigDict, workdir: pathlib.Path, shape: Shape, bank: Any, params: Any, name: str, part: Any) -> Any:
    """The decoder alone, behind prefixes of words (`small.words`) or behind queries; numbers are in words always.

    Args:
      bank, params: as in `start`. name: of the stage. part: of the config, see `data`.

    Returns:
      The language model's parameters.
    """
    decoder = start(config, workdir, shape, bank, params, name)
    lm = OPT(shape.model.config.lm)

    def loss(params, held, batch, rng, option):
        del rng, option
        return numbers.loss_fn(lm, params, held, batch, shape.model.config.pad_token)

    def iterator(k):
        source, transforms = data(config, shape, decoder, part, part.phases[k])
        return batches(source, transforms, part.batch, seed=config.seed + k, threads=config.threads)

    phases = [(phase["steps"], functools.partial(iterator, k), [None]) for k, phase in enumerate(part.phases)]
    tx = adamw(part.lr, sum(phase["steps"] for phase in part.phases))
    folder = workdir / f"{name}{config.suffix}"
    return train_stage(f"stage 2, {name}", folder, decoder.params, tx, loss, phases, config, decoder.held)["lm"]
