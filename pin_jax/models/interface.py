"""The interfaces of VLMs and language models, and `Inserts`, what a method may put into a VLM.

A VLM is a vision encoder, a fusion module and a language model (`models.base` puts them together). Sizes: B samples of
I images; N vision tokens an image, of width D; L media tokens an image, behind the fusion module; R rows of text of T
tokens; V words. R is a multiple of B: row r asks about sample r // (R / B), so that an image's questions share what is
computed of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

Tree = Mapping[str, Any]  # a nested dict of arrays
KeysValues = tuple[Float[Array, "... _ _ _ _"], Float[Array, "... _ _ _ _"]]  # rows, tokens, heads, channels


@flax.struct.dataclass
class Inserts:
    """What a method puts into a frozen VLM; every field is optional.

    Attributes:
      vision_input: tokens after the class token at the vision encoder's input (VPT on phi_V); with a leading axis,
        where each image has its own (dropout).
      vision_output: added to the vision encoder's output (PIN).
      fusion_input: tokens among those handed to the fusion module (VPT on F); with a leading axis, of each sample.
      text: embeddings in front of the text (CoOp).
      lora: branches beside dense layers, nested as the VLM's parameters are: at the place of a dense layer with kernel
        float[..., in, out] stands {"a": float[..., in, r], "b": float[..., r, out]}; see `layers.Dense`.
    """

    vision_input: Float[Array, "*images P D"] | None = None
    vision_output: Float[Array, "N D"] | None = None
    fusion_input: Float[Array, "*samples P D"] | None = None
    text: Float[Array, "P D_text"] | None = None
    lora: Tree | None = None

    @property
    def stands_in_front(self) -> bool:
        """Whether something of it may stand in front of a text, whose beginning then cannot be read once for all."""
        return not (self.text is None and self.vision_input is None and self.fusion_input is None)

    @property
    def in_vision(self) -> bool:
        """Whether the vision encoder computes something else with them: its output then cannot be computed before."""
        return self.vision_input is not None or "vision" in (self.lora or {})

    def variables(self, frozen: Tree) -> dict[str, Tree]:
        """A VLM's parameters, and the low-rank branches in a collection of their own: what its `apply` takes."""
        return {"params": frozen} | ({"lora": self.lora} if self.lora else {})

    def after_vision(self, vision: Float[Array, "B I N D"], first: int = 0) -> Float[Array, "B I N_and_P D"]:
        """Vision tokens -> x* = x + psi(S), then the fusion tokens.

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

    def before_text(
        self, x: Float[Array, "R T D_text"], mask: Bool[Array, "R T"]
    ) -> tuple[Float[Array, "R P_and_T D_text"], Bool[Array, "R P_and_T"], int]:
        """Embeddings and their mask -> those with P more in front, and P."""
        if self.text is None:
            return x, mask, 0
        prefix = self.text.shape[0]
        front = jnp.broadcast_to(self.text.astype(x.dtype), (x.shape[0], *self.text.shape))
        return jnp.concatenate([front, x], 1), jnp.pad(mask, [(0, 0), (prefix, 0)], constant_values=True), prefix


@flax.struct.dataclass
class Media:
    """Media that text attends to from layers of its own (Flamingo); none where media stand among the embeddings.

    Attributes:
      tokens: float[B, I, L, D].
      index: int[R, T], which image (1-based) each text token attends to; 0 before the first.
    """

    tokens: Float[Array, "B I L D"]
    index: Int[Array, "R T"]


@flax.struct.dataclass
class Cache:
    """What a language model keeps while it writes: one shape for all of them.

    P prompts of S tokens were read. R rows are written, a multiple of P, and share what they go on from: row r
    continues prompt r // (R / P), which is neither copied nor reordered. K layers have keys and values.

    Attributes:
      prompt: keys and values float[K, P, S, H, d] of what was read; of an encoder-decoder model, of its encoder's
        output. prompt_mask: bool[P, S], False at pads.
      text: keys and values float[K, R, T, H, d] of what is written, T the room for it.
      index: how many of the T there are: int[], or int[R] in a ragged cache, whose rows have come to different places.
      media: keys and values float[G, B, M, H, d] of the G layers that attend to media, if there are any.
      media_mask: bool[P, M], which of them a prompt's continuations see.
    """

    prompt: KeysValues
    prompt_mask: Bool[Array, "P S"]
    text: KeysValues
    index: Int[Array, "*R"]
    media: KeysValues | None = None
    media_mask: Bool[Array, "P M"] | None = None

    def reorder(self, rows: Int[Array, " R_new"]) -> Cache:
        """The cache whose row i is what row rows[i] was, of the same prompt; R_new may be another multiple of P."""
        text = jax.tree.map(lambda a: a[:, rows], self.text)
        return dataclasses.replace(self, text=text, index=self.index[rows] if self.index.ndim else self.index)

    @property
    def lengths(self) -> tuple[int, int]:
        """S and T: tokens of a prompt, and room for those that are written."""
        return self.prompt_mask.shape[1], self.text[0].shape[2]

    def per_row(self, of_prompts: Shaped[Array, " P *rest"]) -> Shaped[Array, " R *rest"]:
        """What holds for a prompt, for each row that continues it."""
        return jnp.repeat(of_prompts, self.text[0].shape[1] // len(of_prompts), 0)


@runtime_checkable
class VisionLanguageModel(Protocol):
    """A VLM: a Linen module of which `apply` reaches these methods.

    Attributes:
      config: with `vision.width`, `media_tokens` (vision tokens of one image, to which an insert is added),
        `image_token`, `end_token` and `pad_token`.
    """

    config: Any

    def apply(self, variables: Any, *args: Any, method: str | None = None, **kwargs: Any) -> Any:
        """Linen's: calls a method with these variables."""
        ...

    def encode(self, pixels: Float[Array, "B I H W 3"], inserts: Inserts) -> Float[Array, "B I N D"]:
        """Normalised pixels -> vision tokens."""
        ...

    def fuse(self, vision: Float[Array, "B I N D"], inserts: Inserts) -> Float[Array, "B I L D_media"]:
        """Vision tokens -> media, whatever the language model reads, with x* = x + psi(S) in between."""
        ...

    def __call__(
        self,
        pixels: Float[Array, "B I H W 3"] | None,
        input_ids: Int[Array, "R T"],
        attention_mask: Shaped[Array, "R T"] | None,
        inserts: Inserts,
        vision: Float[Array, "B I N D"] | None,
        labels: Int[Array, "R T_labels"] | None,
    ) -> Float[Array, "R T_out V"]:
        """Logits float32 of whole texts; `labels` of an encoder-decoder language model only."""
        ...

    def predict(
        self, vision: Float[Array, "B I N D"], texts: Mapping[str, Array], inserts: Inserts
    ) -> tuple[Float[Array, "R P V"], Int[Array, "R P"], Float[Array, "R P"]]:
        """Logits float32, labels and weights of teacher-forced texts, for the loss.

        Args:
          texts: ids int[R, T] and target float[R, T], the weight of each token; where a model reads one text and writes
            another, labels int[R, T] too, to which target belongs. With places int[R, P], where tokens of weight stand
            (-1 for none), only these go through the head; without, P is all that can count. With opening int[B, S], of
            VLMs whose images stand in texts, all texts of a sample begin with these tokens, which are read once; ids,
            target and places are of what is behind them. With told int[B, C] too, rows of the same tokens without an
            image, these stand in front of all openings and are read once for all.
        """
        ...

    def prefill(
        self,
        vision: Float[Array, "B I N D"],
        input_ids: Int[Array, "R T"],
        attention_mask: Shaped[Array, "R T"],
        steps: int,
        inserts: Inserts,
        start: tuple[int, ...],
        ragged: bool,
    ) -> tuple[Float[Array, "R V"], Cache]:
        """Reads left-padded prompts: logits float32 of the next token, and a cache with room for `steps` tokens more.

        Args:
          start: tokens that every answer starts with, read with the prompt.
          ragged: rows will be given different numbers of tokens.
        """
        ...

    def step(
        self, cache: Cache, tokens: Int[Array, " R *T"], lengths: Int[Array, " R"] | None
    ) -> tuple[Float[Array, "R V"], Cache]:
        """One token more for each row, or T of them: logits float32 of the token after, and the cache.

        Args:
          lengths: in a ragged cache, how many of the T are a row's own; the pads behind them are overwritten by what
            comes next. A row that is given none has logits that mean nothing.
        """
        ...


@runtime_checkable
class LanguageModel(Protocol):
    """What a VLM asks of its language model, a Linen module that reads embeddings."""

    def embed(self, ids: Int[Array, "R T"]) -> Float[Array, "R T D"]:
        """Embeddings of tokens, without positions."""
        ...

    def __call__(
        self,
        x: Float[Array, "R T D"],
        mask: Bool[Array, "R T"],
        labels: Int[Array, "R T_labels"] | None,
        media: Media | None,
    ) -> Float[Array, "R T_out V"]:
        """Embeddings, with pads and holes anywhere -> logits float32."""
        ...

    def predict(
        self,
        x: Float[Array, "R T D"],
        mask: Bool[Array, "R T"],
        texts: Mapping[str, Array],
        skip: int,
        media: Media | None,
    ) -> tuple[Float[Array, "R P V"], Int[Array, "R P"], Float[Array, "R P"]]:
        """Teacher forcing; x and mask are those of `texts`, and of a prefix in front of them.

        Args:
          skip: no token of `texts` before this place counts in the loss, so none before it is predicted.
        """
        ...

    def prefill(
        self,
        x: Float[Array, "R T D"],
        mask: Bool[Array, "R T"],
        steps: int,
        start: tuple[int, ...],
        ragged: bool,
        media: Media | None,
    ) -> tuple[Float[Array, "R V"], Cache]:
        """See `VisionLanguageModel.prefill`."""
        ...

    def step(
        self, cache: Cache, tokens: Int[Array, " R *T"], lengths: Int[Array, " R"] | None
    ) -> tuple[Float[Array, "R V"], Cache]:
        """See `VisionLanguageModel.step`."""
        ...


def target_tokens(
    texts: Mapping[str, Array], of: str = "ids", start: int = 0
) -> tuple[Int[Array, "R P"], Float[Array, "R P"]]:
    """What is predicted of teacher-forced texts: labels and their weights.

    Args:
      texts: `of` int[R, T] and target float[R, T]; perhaps places int[R, P], which of the T are predicted, -1 for none.
      start: the first of the T that is predicted where there are no places, so that P = T - start.
    """
    if "places" not in texts:
        return texts[of][:, start:], texts["target"][:, start:]
    places = texts["places"]
    labels, weights = (jnp.take_along_axis(texts[key], places.clip(0), 1) for key in (of, "target"))
    return labels, jnp.where(places < 0, 0, weights)


def at_places(x: Float[Array, "R T D"], places: Int[Array, "R P"]) -> Float[Array, "R P D"]:
    """The rows of x at places; zeros where a place is negative.

    A product with one-hot rows instead of a gather: exact, its gradient is a product too, and meshes split it by R.
    """
    pick = jax.nn.one_hot(places, x.shape[1], dtype=x.dtype)
    return jnp.einsum("rpt,rtd->rpd", pick, x, precision="highest")
