"""Stage 2 of the small VLMs: language and what connects it learn on captions, over frozen vision features."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from input_pipeline.pasted import looks
from pin_jax.models.layers import standardise

EMBEDDING_SCALE, LATENT_SCALE = 0.1, 0.1
MATCH, VALUE, OUT, GATE = 1.2, 1.0, 0.2, 0.5


def _match(layer: Any, rng: jax.Array, out: float) -> Any:
    """Starts a stack of cross-attention layers as matchers of what they read; all but q, kv and out stays.

    Args:
      layer: q, kv and out kernels float[layers, in, out]. out: weight of what is read.
    """
    q, kv, o = (layer[name]["kernel"] for name in ("q", "kv", "out"))
    (_, width, inner), media = q.shape, kv.shape[1]
    if media != width:  # names and patches live in two spaces
        return layer
    rotation = MATCH * jax.random.orthogonal(rng, max(inner, width))[:width, :inner]
    value = VALUE * jnp.eye(media, inner)
    return {
        **layer,
        "q": {"kernel": q * 0.5 + rotation},
        "kv": {"kernel": kv * 0.5 + jnp.concatenate([rotation, value], 1)},
        "out": {"kernel": o * 0.5 + out * jnp.eye(inner, width)},
    }


def match_init(params: Any, rng: jax.Array, name_ids: np.ndarray, names: jax.Array) -> Any:
    """Starts cross-attention as a matcher: each name token finds its own patches from the first step.

    Name embeddings are those of stage 1; W_q = W_k = 1.2 x one random orthogonal matrix, W_v near the identity, W_o
    near 0.2 of it, gates at 0.5. A Perceiver starts as a matcher too, W_o near the identity: its latents, small and
    random, gather the patches that are alike, layer by layer (a mean shift), and stay in the space of names.

    Args:
      params: the Flamingo's parameters. name_ids: int[names], token id of each name. names: float[names, D].
    """
    lm = dict(params["lm"])
    embedding = jax.random.normal(rng, lm["embedding"].shape) * EMBEDDING_SCALE
    lm["embedding"] = embedding.at[name_ids].set(standardise(names) * EMBEDDING_SCALE)
    gates = _match(lm["gates"], jax.random.fold_in(rng, 1), OUT)
    for gate in ("attn_gate", "mlp_gate"):
        gates = {**gates, gate: jnp.full_like(gates[gate], GATE)}
    lm["gates"] = gates
    if "perceiver" not in params:
        return {**params, "lm": lm}
    resampler = params["perceiver"]
    layers = _match(resampler["layers"], jax.random.fold_in(rng, 2), VALUE)
    return {
        **params,
        "lm": lm,
        "perceiver": {**resampler, "layers": layers, "latents": resampler["latents"] * LATENT_SCALE},
    }


def loss_fn(
    vlm: nn.Module, lm: Any, vision_params: Any, batch: dict[str, jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted next-token cross-entropy of rows of text about images; see `text_loss`.

    Args:
      lm: what trains: every parameter but the vision encoder's.
      batch: vision float[B, N, D], ids int[B, R, T], weights float[B, R, T].
    """
    ids = batch["ids"].reshape(-1, batch["ids"].shape[-1])
    params = {**lm, "vision": vision_params}
    mask = ids != vlm.config.pad_token
    logits: Any = vlm.apply({"params": params}, None, ids, mask, vision=batch["vision"][:, None])
    return text_loss(logits[:, :-1], ids, batch["weights"].reshape(ids.shape))


def text_loss(logits: jax.Array, ids: jax.Array, weights: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted next-token cross-entropy.

    Args:
      logits: float[R, T - 1, V], of the tokens after the first. ids: int[R, T]. weights: float[R, T].

    Returns:
      The loss, and the share of right answers among the tokens that weigh most, and among names.
    """
    return weighted_loss(logits, ids[:, 1:], weights[:, 1:])


def weighted_loss(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The same of labels int[R, P] and weights float[R, P] at the places of the logits float[R, P, V]."""
    cost = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    right = logits.argmax(-1) == labels
    answers, named = weights >= 6, (weights >= 3) & (weights < 6)
    return (cost * weights).sum() / weights.sum(), {
        "answers": (right & answers).sum() / jnp.maximum(answers.sum(), 1),
        "names": (right & named).sum() / jnp.maximum(named.sum(), 1),
    }


def right_answers(vlm: nn.Module, params: Any, batch: dict[str, jax.Array], plain: int) -> dict[str, jax.Array]:
    """Right answers to `The SLOT of the NAME is`, with their count, per slot.

    `colour` is the gate of the small VLM: it shows that a name finds its own patches. `tint` is the same over the
    objects that have a tint, without those whose answer is `plain`.
    """
    ids = batch["ids"].reshape(-1, batch["ids"].shape[-1])
    mask = ids != vlm.config.pad_token
    logits: Any = vlm.apply({"params": params}, None, ids, mask, vision=batch["vision"][:, None])
    logits = logits[:, -1]
    right = logits.argmax(-1) == batch["answer"].reshape(-1)
    slot = batch["slot"].reshape(-1)
    out = {}
    for i, name in enumerate(looks.SLOTS):
        out[name] = (right & (slot == i)).sum()
        out[f"{name}_count"] = (slot == i).sum()
    tinted = (slot == list(looks.SLOTS).index("colour")) & (batch["answer"].reshape(-1) != plain)
    return out | {"tint": (right & tinted).sum(), "tint_count": tinted.sum()}
