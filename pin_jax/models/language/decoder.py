"""A decoder-only language model around its blocks: whole texts, teacher forcing, and writing with a cache.

OPT and the language models of Flamingo differ in how places are told (`place`, `bias`) and in their layers (`run`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pin_jax.models import attention
from pin_jax.models.interface import Cache, KeysValues, Media, at_places, target_tokens


class Decoder(nn.Module):
    """It has the interface `interface.LanguageModel`; what a subclass provides comes first."""

    config: Any

    def embed(self, ids: Int[Array, "R T"]) -> Float[Array, "R T D"]:
        """Embeddings of tokens, without positions."""
        raise NotImplementedError

    def logits(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """The last layer's output -> logits, summed up in float32."""
        raise NotImplementedError

    def place(self, x: Float[Array, "R T D"], places: Int[Array, "R T"]) -> Float[Array, "R T D"]:
        """Adds positions to embeddings, where a model has such. places: counted over what is seen; -1 at pads."""
        del places
        return x

    def told(self, columns: Int[Array, "#R T"], places: Int[Array, "R T"]) -> Int[Array, "#R T"]:
        """Which of the two the layers are told: columns, pads counted, or places."""
        del places
        return columns

    def bias(self, queries: Int[Array, "#R T"], keys: Int[Array, " S"], mask: Bool[Array, "#R S"]) -> attention.Bias:
        """Logit bias of keys at their columns, for queries at theirs; pads count as columns."""
        return attention.visible(attention.causal(queries, keys, mask))

    def run(
        self,
        x: Float[Array, "R T D"],
        columns: Int[Array, "#R T"],
        bias: attention.Bias,
        media: tuple[KeysValues, Bool[Array, "R T M"]] | None = None,
        prompt: tuple[KeysValues, attention.Bias] | None = None,
        text: KeysValues | None = None,
        index: Int[Array, "*R"] | int = 0,
    ) -> tuple[Float[Array, "R T D"], KeysValues]:
        """All layers.

        Args:
          columns: from `told`, for models that tell places inside the layers. bias: over the text's own keys.
          media: from `media_keys`.
          prompt: earlier keys and values, shared by rows, and their bias; see `attention.over_segments`.
          text: own keys and values, into which those of x are written from `index` on; without, they are those of x.

        Returns:
          x, and its own keys and values float[K, R, S, H, d].
        """
        raise NotImplementedError

    def media_keys(self, media: Media | None) -> tuple[KeysValues, Bool[Array, "R T M"]] | None:
        """Keys and values of the layers that attend to media, and which of them each token of the text sees."""
        del media
        return None

    def recent(
        self, media: Media, keys: KeysValues, seen: Bool[Array, "R T M"]
    ) -> tuple[KeysValues, Bool[Array, "R M"]]:
        """Of the result of `media_keys`, what is seen by the tokens that are written after the text."""
        raise NotImplementedError

    def _read(self, x, mask, media):
        """Whole texts -> hidden states float[R, T, D], and keys and values; media: from `media_keys`."""
        columns = jnp.arange(x.shape[1])[None]
        places = jnp.cumsum(mask, 1) * mask - 1
        bias = self.bias(columns, columns[0], mask)
        return self.run(self.place(x, places), self.told(columns, places), bias, media)

    def _behind(self, x, mask, keys, seen):
        """Texts behind earlier ones, each shared by as many rows -> as `run`; seen: bool[B, S] of `keys`."""
        read, each = seen.shape[1], len(x) // len(seen)
        columns = read + jnp.arange(x.shape[1])[None]
        places = jnp.where(mask, jnp.repeat(seen.sum(1), each)[:, None] + jnp.cumsum(mask, 1) - 1, -1)
        own, before = self.bias(columns, columns[0], mask), self.bias(columns, jnp.arange(read), seen)
        return self.run(self.place(x, places), self.told(columns, places), own, None, (keys, before))

    def _go_on(self, x, mask, opening):
        """Texts behind the opening that they share -> hidden states float[R, T, D]."""
        first, seen, front = opening
        if front is None:
            _, keys = self._read(first, seen, None)
        else:
            there = jnp.ones(front.shape[:2], bool)
            before = self._read(front, there, None)[1]
            _, own = self._behind(first, seen, before, there)
            keys = jax.tree.map(lambda a, b: jnp.concatenate([jnp.repeat(a, len(first), 1), b], 2), before, own)
            seen = jnp.pad(seen, [(0, 0), (front.shape[1], 0)], constant_values=True)
        return self._behind(x, mask, keys, seen)[0]

    def __call__(
        self,
        x: Float[Array, "R T D"],
        mask: Bool[Array, "R T"],
        labels: Int[Array, "R T_labels"] | None = None,
        media: Media | None = None,
    ) -> Float[Array, "R T V"]:
        """Embeddings, with pads and holes anywhere -> logits float32."""
        if labels is not None:
            raise ValueError("labels: a decoder-only language model takes them as part of input_ids")
        return self.logits(self._read(x, mask, self.media_keys(media))[0])

    def predict(
        self,
        x: Float[Array, "R T D"],
        mask: Bool[Array, "R T"],
        texts: Mapping[str, Array],
        skip: int,
        media: Media | None = None,
        opening: tuple[Float[Array, "B S D"], Bool[Array, "B S"], Float[Array, "1 C D"] | None] | None = None,
    ) -> tuple[Float[Array, "R P V"], Int[Array, "R P"], Float[Array, "R P"]]:
        """Teacher forcing; see the interface.

        Args:
          opening: embeddings and mask of what rows share: R is a multiple of B, and row r goes on from r // (R / B);
            and embeddings of what stands in front of all of them, or None.
        """
        prefix = x.shape[1] - texts["ids"].shape[1]
        media = None if media is None else dataclasses.replace(media, index=media.index[:, :-1])
        x, mask = x[:, :-1], mask[:, :-1]  # the last token is only predicted
        if opening is None:
            hidden, _ = self._read(x, mask, self.media_keys(media))
        else:
            hidden = self._go_on(x, mask, opening)
        if "places" in texts:  # a token is predicted at the one before it
            hidden = at_places(hidden, prefix + texts["places"] - 1)
        else:
            hidden = hidden[:, prefix + skip - 1 :]
        return self.logits(hidden), *target_tokens(texts, start=skip)

    def prefill(
        self,
        x: Float[Array, "R T D"],
        mask: Bool[Array, "R T"],
        steps: int,
        start: tuple[int, ...] = (),
        ragged: bool = False,
        media: Media | None = None,
    ) -> tuple[Float[Array, "R V"], Cache]:
        """Reads left-padded prompts and makes room for `steps` tokens; see the interface."""
        if start:
            first = self.embed(jnp.broadcast_to(jnp.array(start), (x.shape[0], len(start)))).astype(x.dtype)
            x, more = jnp.concatenate([x, first], 1), [(0, 0), (0, len(start))]
            mask = jnp.pad(mask, more, constant_values=True)
            media = None if media is None else dataclasses.replace(media, index=jnp.pad(media.index, more, "edge"))
        seen = self.media_keys(media)
        hidden, keys = self._read(x, mask, seen)
        cache = Cache(
            prompt=keys,
            prompt_mask=mask,
            text=jax.tree.map(lambda a: jnp.zeros((*a.shape[:2], steps, *a.shape[3:]), a.dtype), keys),
            index=jnp.zeros(x.shape[:1] if ragged else (), jnp.int32),
        )
        if seen is not None and media is not None:
            media_keys, media_mask = self.recent(media, *seen)
            cache = dataclasses.replace(cache, media=media_keys, media_mask=media_mask)
        return self.logits(hidden[:, -1]), cache

    def step(
        self, cache: Cache, tokens: Int[Array, " R *T"], lengths: Int[Array, " R"] | None = None
    ) -> tuple[Float[Array, "R V"], Cache]:
        """Some tokens more; see the interface."""
        tokens = tokens[:, None] if tokens.ndim == 1 else tokens
        index, mask, count, (read, room) = cache.index, cache.prompt_mask, tokens.shape[1], cache.lengths
        own = index.reshape(-1, 1) + jnp.arange(count)
        places = cache.per_row(mask.sum(1))[:, None] + own
        x = self.place(self.embed(tokens), places)
        columns, written = read + own, jnp.ones((1, room), bool)
        bias = self.bias(columns, read + jnp.arange(room), written)
        before = self.bias(columns, jnp.arange(read), cache.per_row(mask) if index.ndim else mask)
        media = None
        if cache.media is not None and cache.media_mask is not None:
            seen = cache.per_row(cache.media_mask)[:, None]
            media = cache.media, jnp.broadcast_to(seen, (seen.shape[0], count, seen.shape[2]))
        x, text = self.run(x, self.told(columns, places), bias, media, (cache.prompt, before), cache.text, index)
        index = index + (count if lengths is None else lengths)
        return self.logits(after(x, lengths)), dataclasses.replace(cache, text=text, index=index)


def after(x: Float[Array, "R T D"], lengths: Int[Array, " R"] | None) -> Float[Array, "R D"]:
    """The last of the T that is a row's own: all T are without lengths."""
    if lengths is None:
        return x[:, -1]
    return jnp.take_along_axis(x, (lengths - 1).clip(0)[:, None, None], 1)[:, 0]
