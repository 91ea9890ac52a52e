"""Tokenizers of published and of small models: what is checked of them, and of the texts that they are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from input_pipeline.errors import UserError


def is_word_level(tokenizer: Any) -> bool:
    """Whether every word is known or not (small models), instead of being written in pieces (published ones)."""
    from tokenizers.models import WordLevel

    return isinstance(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None), WordLevel)


def refuse_unknown_words(tokenizer: Any, texts: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
    """Refuses texts with words that a small model does not know.

    Published tokenizers write any word, and their unknown token may be one that stands in every text: OPT's is `</s>`.

    Args:
      rows: ids of each text.

    Raises:
      UserError: names the text.
    """
    if not is_word_level(tokenizer) or tokenizer.unk_token_id is None:
        return
    for text, row in zip(texts, rows, strict=True):
        if tokenizer.unk_token_id in row:
            raise UserError(f"text {text!r}: it has words that this small model does not know; see its model card")
