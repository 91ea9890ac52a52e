"""Whether an insert can move a VLM (`config.run=diagnose`): what the numbers of an answer heed, and what reaches psi.

An insert speaks to the language model through the vision tokens. It can teach places only if the language model heeds
these when it writes the numbers of a box. Names in a caption are the measure: a captioner reads those off its image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from pin_jax.models import attention as attending
from pin_jax.models.base import ImagesInText
from pin_jax.models.interface import Inserts

HEEDS, OUTGROWS = 0.25, 10.0  # of what names heed; times the norm of the vision tokens
BENT = 0.5  # of `kept`


@dataclasses.dataclass
class Texts:
    """Questions with their answers, one of each image.

    Attributes:
      inputs: what a VLM's `predict` takes: ids int[R, T], target float[R, T], of the tokens that are looked at, and
        labels int[R, T] where prompt and answer are two texts.
      name: bool[R, T], the places of the name in ids.
    """

    inputs: dict[str, np.ndarray]
    name: np.ndarray


def encode(tokenizer: Any, frame: Any, parts: Sequence[tuple[str, str, str, str]], numbers: bool) -> Texts:
    """Texts of questions, padded to the longest.

    Args:
      tokenizer, frame: the VLM's. parts: of each, what stands before the name, the name, what stands behind it in the
        prompt, and the answer. numbers: the answer's numbers are looked at; else all of it.
    """

    def ids_of(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    asked = [ids_of(frame.prompt(before + called + behind)) for before, called, behind, _ in parts]
    told = [ids_of(answer) for *_, answer in parts]
    begins = [0 if frame.encoder_decoder else len(one) for one in asked]
    ends = [begin + len(one) for begin, one in zip(begins, told, strict=True)]
    room = max(map(len, asked)) if frame.encoder_decoder else max(ends)
    ids, name = np.full((len(parts), room), tokenizer.pad_token_id, np.int32), np.zeros((len(parts), room), bool)
    written = np.full((len(parts), max(ends)), tokenizer.pad_token_id, np.int32) if frame.encoder_decoder else ids
    target = np.zeros(written.shape, np.float32)
    for i, (before, called, _, _) in enumerate(parts):
        ids[i, : len(asked[i])] = asked[i]
        name[i, len(ids_of(frame.prefix + before)) : len(ids_of(frame.prefix + before + called))] = bool(called)
        written[i, begins[i] : ends[i]] = told[i]
        digits = [any(c.isdigit() for c in tokenizer.decode([token])) for token in told[i]]
        target[i, begins[i] : ends[i]] = digits if numbers else 1
    inputs = {"ids": ids, "target": target} | ({"labels": written} if frame.encoder_decoder else {})
    return Texts(inputs, name)


def _likelihood(model: Any, frozen: Any, inserts: Inserts, vision: jax.Array, shift: jax.Array, inputs: Any):
    """Mean log-likelihood of the tokens looked at, summed over texts; `shift` is added to what the LM reads."""

    def interceptor(call, args, kwargs, context):
        out = call(*args, **kwargs)
        return out + shift.astype(out.dtype) if context.method_name == "fuse" else out

    with nn.intercept_methods(interceptor):
        logits, labels, weights = model.apply(
            inserts.variables(frozen), vision[:, None], inputs, inserts, method="predict"
        )
    cost = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return -((cost * weights).sum(1) / jnp.maximum(weights.sum(1), 1)).sum()


def likelihood(model: Any, frozen: Any, inserts: Inserts, vision: Any, texts: Texts) -> float:
    """Log-likelihood of a token that is looked at, in nats, mean over a text's tokens and over texts; vision as in
    `gradients`."""

    @jax.jit
    def of(frozen, inserts, vision, inputs):
        return _likelihood(model, frozen, inserts, vision, jnp.zeros(()), inputs)

    return float(of(frozen, inserts, jnp.asarray(vision), texts.inputs)) / len(vision)


def in_place_of_images(
    model: Any, frozen: Any, inserts: Inserts, vision: Any, texts: Texts, said: Sequence[Sequence[int]]
) -> float:
    """`likelihood` with the embeddings of a text in the first of the image's places; the others stay the image's.

    It says what the language model can do with what it reads there.

    Args:
      said: token ids of each text; what is longer than the places is cut.

    Raises:
      ValueError: the model's image does not stand among the text's embeddings.
    """
    if not isinstance(model, ImagesInText):
        raise ValueError(f"{type(model).__name__}: its image has no places in a text")

    def embedded(module, ids):
        return module.lm.embed(ids)

    @jax.jit
    def of(frozen, inserts, vision, inputs, ids, here):
        variables = inserts.variables(frozen)
        media: Any = model.apply(variables, vision[:, None], inserts, method="fuse")
        words: Any = model.apply(variables, ids, method=embedded)
        shift = jnp.where(here[:, None, :, None], words[:, None], media) - media
        return _likelihood(model, frozen, inserts, vision, shift, inputs)

    media: Any = jax.eval_shape(
        lambda v: model.apply(inserts.variables(frozen), v[:, None], inserts, method="fuse"), jnp.asarray(vision)
    )
    places = media.shape[2]
    ids, here = np.zeros((len(said), places), np.int32), np.zeros((len(said), places), bool)
    for i, tokens in enumerate(said):
        count = min(len(tokens), model.config.image_places)
        ids[i, :count], here[i, :count] = tokens[:count], True
    return float(of(frozen, inserts, jnp.asarray(vision), texts.inputs, ids, here)) / len(vision)


def fitted(
    model: Any, frozen: Any, inserts: Inserts, vision: Any, texts: Texts, steps: int = 30, rate: float = 0.1
) -> float:
    """`likelihood` after something of each image's own was added to its vision tokens, fitted to its answer by Adam.

    An insert is the same for all images and cannot do as well; where even this does not reach what a text reaches that
    says the answer, what is between vision tokens and language model is too narrow.

    Args:
      rate: of Adam, in parts of the vision tokens' root mean square.
    """
    tx = optax.adam(rate * float(np.sqrt(np.mean(np.square(vision)))))
    nothing = jnp.zeros(())

    @jax.jit
    def step(own, state, frozen, inserts, vision, inputs):
        def loss(own):
            return -_likelihood(model, frozen, inserts, vision + own, nothing, inputs)

        updates, state = tx.update(jax.grad(loss)(own), state)
        return optax.apply_updates(own, updates), state

    own = jnp.zeros(np.shape(vision), jnp.float32)
    state = tx.init(own)
    for _ in range(steps):
        own, state = step(own, state, frozen, inserts, jnp.asarray(vision), texts.inputs)
    return likelihood(model, frozen, inserts, jnp.asarray(vision) + own, texts)


def kept(model: Any, frozen: Any, inserts: Inserts, vision: Any) -> float | None:
    """How far what the language model reads still differs between images as it does without the insert.

    Returns:
      Correlation of its deviations from the mean image: 1 where the insert only adds. None where a method changes how
      many tokens are read.
    """

    @jax.jit
    def both(frozen, inserts, vision):
        with_it, without = (
            model.apply(own.variables(frozen), vision[:, None], own, method="fuse") for own in (inserts, Inserts())
        )
        return with_it, without

    a, b = (np.asarray(x - x.mean(0), np.float64) for x in both(frozen, inserts, jnp.asarray(vision)))
    return None if a.shape != b.shape else float((a * b).sum() / max(np.sqrt((a**2).sum() * (b**2).sum()), 1e-12))


def gradients(model: Any, frozen: Any, method: Any, params: Any, vision: Any, texts: Texts) -> dict[str, float]:
    """Norms of the gradient of a token's log-likelihood at each joint, mean over texts.

    Args:
      method, params: what is trained. vision: float[R, N, D], without it.

    Returns:
      media: at what the language model reads of the image. vision: at the vision tokens. shared: what of that all
      images agree on, in [0, 1]: an insert is the same for every image. insert: at the parameters trained, of all texts
      together.
    """
    inserts = method.inserts(params)
    media = jax.eval_shape(
        lambda v: model.apply(inserts.variables(frozen), v[:, None], inserts, method="fuse"), jnp.asarray(vision)
    )

    @jax.jit
    def of(params, frozen, vision, shift, inputs):
        def value(params, vision, shift):
            return _likelihood(model, frozen, method.inserts(params), vision, shift, inputs)

        return jax.grad(value, (0, 1, 2))(params, vision, shift)

    trained, at_vision, at_media = of(
        params, frozen, jnp.asarray(vision), jnp.zeros(media.shape, jnp.float32), texts.inputs
    )

    def norms(x):
        return jnp.linalg.norm(x.reshape(len(x), -1), axis=1).mean()

    return {
        "media": float(norms(at_media)),
        "vision": float(norms(at_vision)),
        "shared": float(jnp.linalg.norm(at_vision.mean(0)) / jnp.maximum(norms(at_vision), 1e-12)),
        "insert": float(optax.tree.norm(trained)) / len(vision),
    }


def attention(model: Any, frozen: Any, inserts: Inserts, vision: Any, texts: Texts) -> list[dict[str, Any]]:
    """Where the language model looks before each token looked at: shares of attention on image and name, by layer.

    Returns:
      A row for each of its attentions that can see either, in order: image and name, the largest share of a head, mean
      over tokens; None where it cannot see them.
    """

    @jax.jit
    def look(frozen, inserts, vision, inputs):
        variables = inserts.variables(frozen)
        with attending.watching() as fused:
            model.apply(variables, vision[:, None], inserts, method="fuse")
        with attending.watching() as seen:
            _, _, weights = model.apply(variables, vision[:, None], inputs, inserts, method="predict")
        return weights, seen[len(fused) :]  # not those of the fusion

    inputs = texts.inputs
    weights, seen = jax.device_get(look(frozen, inserts, vision, inputs))
    asked, ids, config = weights > 0, inputs["ids"], model.config
    extra = 0 if inserts.text is None else inserts.text.shape[0]
    own = np.pad(ids == config.image_token, [(0, 0), (extra, 0)]), np.pad(texts.name, [(0, 0), (extra, 0)])
    writes = inputs["labels"].shape[1] if "labels" in inputs else ids.shape[1] - 1 + extra
    crossed = not isinstance(model, ImagesInText)  # the image's tokens are no tokens of the text
    rows = []
    for share in seen:
        (_, _, length, keys), row = share.shape, {}
        if length != writes:  # an encoder's
            continue
        if crossed and keys != length:
            row["image"] = np.ones((len(ids), keys), bool)
        elif keys in (length, own[0].shape[1]) and not ("labels" in inputs and keys == length):
            row["name"] = own[1][:, :keys]
            if not crossed:
                row["image"] = own[0][:, :keys]
        if not row:
            continue
        at = share[:, :, length - weights.shape[1] :]  # [R, H, T', S]
        heads = {
            key: (np.einsum("rhts,rs->rht", at, where) * asked[:, None]).sum((0, 2)) / asked.sum()
            for key, where in row.items()
        }
        rows.append({key: float(heads[key].max()) if key in heads else None for key in ("image", "name")})
    return rows


def verdict(numbers: float, names: float, psi: float, tokens: float, content: float | None = None) -> list[str]:
    """What the measures say, a line each.

    Args:
      numbers, names: gradient norms at the vision tokens. psi, tokens: mean norms of one token. content: of `kept`.
    """
    share = numbers / max(names, 1e-12)
    heeds = f"numbers heed the image {share:.2f} times as much as names in a caption do"
    lines = [
        f"{heeds}: an insert can move this VLM"
        if share >= HEEDS
        else f"{heeds}: its language model does not look there when it writes a box, and an insert has little to move"
    ]
    if psi > OUTGROWS * tokens:
        lines.append(
            f"psi is {psi / tokens:.0f} times as large as the vision tokens: it drowns them; train it anew with a"
            " smaller config.lr and a longer config.warmup"
        )
    if content is not None and content < BENT:
        lines.append(
            f"what an image says is bent: behind the insert it differs from other images' as before to {content:.2f}"
            " (1: it only adds); a smaller config.lr or config.method_options.start leaves more of it"
        )
    return lines
