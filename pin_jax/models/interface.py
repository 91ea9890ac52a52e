"""The interface that every VLM of the project offers, and what a method may put into one.

A VLM is a Linen module with a `config` that has `vision.width`, `media_tokens` (vision tokens of one image, to which an
insert is added), `image_token`, `end_token` and `pad_token`, and with these methods:

  encode(pixels float[B, I, H, W, 3], inserts) -> vision tokens float[B, I, N, D]; B samples of I images each
  fuse(vision, inserts) -> media, whatever the language model reads
  __call__(pixels, input_ids int[R, T], attention_mask, inserts, vision, labels) -> logits float32[R, T, V]
  predict(vision, texts, inserts) -> logits float32[R, P, V], labels int[R, P] and weights float[R, P] of teacher-forced
    texts, for the loss. texts: ids int[R, T] and target float[R, T], the weight of each token; where a model reads one
    text and writes another, labels int[R, T] too, to which target belongs. With places int[R, P], where tokens of
    weight stand (-1 for none), only these go through the head; without, P is all that can count
  prefill(vision, input_ids, attention_mask, steps, inserts, start, ragged) -> logits float32[R, V] and a cache, with
    room for `steps` tokens more. `start` holds tokens that every answer starts with; `ragged` says that rows will be
    given different numbers of tokens
  step(cache, tokens int[R] or int[R, T], lengths) -> logits float32[R, V] and the cache. `lengths` int[R] says how many
    of the T tokens are a row's own, in a ragged cache; the pads behind them are overwritten by what comes next
  reorder(cache, rows int[R']) -> the cache whose row i is what row rows[i] was; rows stay with their image

Rows of text may be a multiple of the samples: row r then asks about sample r // (R / B), so that an image's questions
share what is computed of it.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Inserts:
    """What a method puts into a frozen VLM; every field is optional.

    Attributes:
      vision_input: float[P, D], tokens after the class token at the vision encoder's input (VPT on phi_V); or
        float[images, P, D], where each image has its own (dropout).
      vision_output: float[N, D], added to the vision encoder's output (PIN).
      fusion_input: float[P, D], tokens among those handed to the fusion module (VPT on F); or float[B, P, D].
      text: float[P, D_text], embeddings in front of the text (CoOp).
      low_rank: branches beside dense layers (LoRA), nested as the VLM's parameters are: at the place of a kernel
        float[..., in, out] stands {"low_rank": {"a": float[..., in, r], "b": float[..., r, out]}}; see `layers.Dense`.
    """

    vision_input: jax.Array | None = None
    vision_output: jax.Array | None = None
    fusion_input: jax.Array | None = None
    text: jax.Array | None = None
    low_rank: Any = None

    @property
    def in_vision(self) -> bool:
        """Whether the vision encoder computes something else with them: its output then cannot be computed before."""
        return self.vision_input is not None or "vision" in (self.low_rank or {})

    def variables(self, frozen: Any) -> dict[str, Any]:
        """A VLM's parameters, with the low-rank branches in their places: what its `apply` takes."""
        return {"params": _beside(frozen, self.low_rank or {})}

    def after_vision(self, vision: jax.Array, first: int = 0) -> jax.Array:
        """Vision tokens float[B, I, N, D] -> float[B, I, N (+ P), D]: x* = x + psi(S), then the fusion tokens.

        Args:
          first: how many of them stand before those that came out of `vision_input`, to which nothing is added.
        """
        if self.vision_output is not None:
            added = self.vision_output
            if self.vision_input is not None:
                none = jnp.zeros(self.vision_input.shape[-2:], added.dtype)
                added = jnp.concatenate([added[:first], none, added[first:]])
            vision = (vision + added).astype(vision.dtype)  # the sum in the insert's float32
        if self.fusion_input is not None:
            extra = self.fusion_input.astype(vision.dtype)
            extra = extra[:, None] if extra.ndim == 3 else extra
            extra = jnp.broadcast_to(extra, (*vision.shape[:2], *extra.shape[-2:]))
            vision = jnp.concatenate([vision, extra], 2)
        return vision

    def before_text(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        """Embeddings float[R, T, D] and mask bool[R, T] -> those with P more in front, and P."""
        if self.text is None:
            return x, mask, 0
        prefix = self.text.shape[0]
        front = jnp.broadcast_to(self.text.astype(x.dtype), (x.shape[0], *self.text.shape))
        return jnp.concatenate([front, x], 1), jnp.pad(mask, [(0, 0), (prefix, 0)], constant_values=True), prefix


def _beside(tree: Any, extra: dict[str, Any]) -> Any:
    """A nested dict with more entries; what is there stays, and is not copied."""
    return {**tree, **{k: _beside(tree[k], v) if k in tree else v for k, v in extra.items()}}


def target_tokens(texts: dict[str, jax.Array], of: str = "ids", start: int = 0) -> tuple[jax.Array, jax.Array]:
    """What is predicted of teacher-forced texts: labels int[R, P] and their weights float[R, P].

    Args:
      texts: `of` int[R, T] and target float[R, T]; perhaps places int[R, P], which of the T are predicted, -1 for none.
      start: the first of the T that is predicted where there are no places, so that P = T - start.
    """
    if "places" not in texts:
        return texts[of][:, start:], texts["target"][:, start:]
    places = texts["places"]
    labels, weights = (jnp.take_along_axis(texts[key], places.clip(0), 1) for key in (of, "target"))
    return labels, jnp.where(places < 0, 0, weights)


def at_places(x: jax.Array, places: jax.Array) -> jax.Array:
    """The rows of x float[R, T, D] at places int[R, P] -> float[R, P, D]; zeros where a place is negative.

    A product with one-hot rows instead of a gather: exact, its gradient is a product too, and meshes split it by R.
    """
    pick = jax.nn.one_hot(places, x.shape[1], dtype=x.dtype)
    return jnp.einsum("rpt,rtd->rpd", pick, x, precision="highest")
