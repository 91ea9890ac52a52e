"""Tokenizers from a folder: their files are there and intact, and they are those of the model beside them.

A tokenizer that does not belong to its model makes nonsense of every text without an error: transformers makes an empty
vocabulary of a folder that has no tokenizer files, and an id beyond the embedding reads some other row.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.errors import UserError
from pin_jax.weights import files
from pin_jax.weights.files import short

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would say that there is no torch: none is needed
# What a vocabulary may stand in, by the kind of tokenizer.
BYTE_LEVEL = (("tokenizer.json",), ("vocab.json", "merges.txt"))
SENTENCEPIECE = (("tokenizer.json",), ("spiece.model",))
WORDPIECE = (("tokenizer.json",), ("vocab.txt",))
FAST = (("tokenizer.json",),)
# JSON files beside it, objects all of them.
_OBJECTS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
PROBE = "a photo of a cat"
_AS_IT_IS = ("TokenizersBackend", "PreTrainedTokenizerFast")  # the names of that class in transformers 5 and 4


def read(
    folder: pathlib.Path,
    rows: int,
    vocabulary: Sequence[Sequence[str]],
    *,
    loader: Any = None,
    classes: Sequence[str] = (),
    special: Sequence[str] = (),
    first: str = "",
    last: str = "",
    **options: Any,
) -> Any:
    """The tokenizer of a folder.

    Args:
      rows: of the model's word embedding.
      vocabulary: sets of files, one of which must be there: `BYTE_LEVEL`, `SENTENCEPIECE`, ...
      loader: a tokenizer class of transformers; AutoTokenizer by default, which goes by tokenizer_config.json: it may
        then be one of `classes` (as their names begin), or one that takes tokenizer.json as it is.
      special: tokens that it must know.
      first, last: attributes of the special tokens that stand before and behind every text, `bos_token` for instance.
      **options: of from_pretrained.

    Raises:
      UserError: files are missing or broken, a special token is unknown, the vocabulary is not one of `rows`, or no
        text can be written with it.
    """
    import transformers

    made = parse(folder, vocabulary, loader or transformers.AutoTokenizer, **options)
    name = type(made).__name__
    if not name.startswith((*classes, *_AS_IT_IS)) and loader is None:
        raise UserError(
            f"tokenizer {folder}: tokenizer_class in tokenizer_config.json makes it a {short(name)}; expected"
            f" {' or '.join(classes)}: give the tokenizer that its model was trained with"
        )
    return belongs(made, folder, rows, special=special, first=first, last=last)


def parse(folder: pathlib.Path, vocabulary: Sequence[Sequence[str]], loader: Any, **options: Any) -> Any:
    """Reads a tokenizer's files, see `read`.

    Raises:
      UserError: files are missing or broken.
    """
    if not any(all((folder / name).is_file() for name in names) for names in vocabulary):
        choice = ", or ".join(" with ".join(names) for names in vocabulary)
        raise UserError(
            f"tokenizer {folder}: no vocabulary in it; it must hold {choice}, as its makers publish them: fetch them"
        )
    for name in _OBJECTS:
        if (folder / name).is_file():
            files.read_object(folder / name)
    _intact(folder)
    try:
        return loader.from_pretrained(folder, **options)
    except ImportError as error:
        package = next((name for name in ("sentencepiece", "protobuf") if name in str(error)), "")
        remedy = f"pip install {package}" if package else "pip install -r requirements.txt"
        raise UserError(f"tokenizer {folder}: it needs a package that is not installed; {remedy}") from error
    except BaseException as error:  # transformers and tokenizers raise many kinds, panics of Rust among them
        _not_ours(error)
        found = [name for name in (*_OBJECTS, "merges.txt", "spiece.model", "vocab.txt") if (folder / name).is_file()]
        raise UserError(
            f"tokenizer {folder}: {', '.join(found)} cannot be read together ({type(error).__name__}: {error});"
            " fetch them again"
        ) from error


def _not_ours(error: BaseException) -> None:
    """Passes on what is no error of a file: an interrupt, an exit."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _intact(folder: pathlib.Path) -> None:
    """Refuses vocabulary files that are broken, each by its name."""
    import tokenizers

    def tried(name: str, read: Any) -> None:
        if not (folder / name).is_file():
            return
        try:
            read(str(folder / name))
        except BaseException as error:
            _not_ours(error)
            raise UserError(f"{folder / name}: not an intact tokenizer file ({error}); fetch it again") from error

    def pieces(path: str) -> None:
        import sentencepiece

        if not sentencepiece.SentencePieceProcessor(model_file=path).get_piece_size():
            raise ValueError("it is empty")

    def ids(path: str) -> None:
        if any(not isinstance(i, int) or i < 0 for i in files.read_object(pathlib.Path(path)).values()):
            raise ValueError("its ids are not whole numbers from 0 on")

    def merges(path: str) -> None:
        lines = [line for line in pathlib.Path(path).read_text("utf-8").splitlines() if line[:9] != "#version:"]
        made = {"".join(line.split(" ")) for line in lines}
        tokens = [t for t in files.read_object(folder / "vocab.json") if len(t.removesuffix("</w>")) > 1]
        lost = sum(token not in made for token in tokens)
        if lost > max(16, len(tokens) // 100):  # special tokens and OPT's madeupwords come of no merge
            raise ValueError(f"{lost} of {len(tokens)} tokens of vocab.json come of no merge: it is cut short")

    tried("tokenizer.json", tokenizers.Tokenizer.from_file)
    tried("vocab.json", ids)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tried("merges.txt", lambda path: tokenizers.models.BPE.read_file(str(folder / "vocab.json"), path))
        tried("merges.txt", merges)
    tried("vocab.txt", lambda path: pathlib.Path(path).read_text("utf-8"))
    try:
        import sentencepiece  # noqa: F401
    except ImportError:
        return  # said by `parse`, where it is needed
    tried("spiece.model", pieces)


def belongs(
    tokenizer: Any, folder: Any, rows: int, *, special: Sequence[str] = (), first: str = "", last: str = ""
) -> Any:
    """The tokenizer, if it can be that of a model with so many rows of word embedding; see `read`.

    Raises:
      UserError: it cannot.
    """
    longest = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, int | float) or not longest > 0:
        raise UserError(
            f"tokenizer {folder}: model_max_length in tokenizer_config.json is {short(longest)}; expected a number"
        )
    tokens = tokenizer.get_vocab()
    reach = max(tokens.values(), default=-1) + 1
    remedy = "give the tokenizer that its model was trained with"
    if reach > rows:
        raise UserError(
            f"tokenizer {folder}: ids up to {reach - 1}, but the word embedding of its model has {rows} rows; {remedy}"
        )
    if reach <= rows // 2:
        raise UserError(
            f"tokenizer {folder}: {reach} tokens, but the word embedding of its model has {rows} rows; {remedy}"
        )
    unknown = [token for token in special if token not in tokens]
    for name in filter(None, (first, last)):
        token = getattr(tokenizer, name)
        if token is None or token not in tokens:
            unknown.append(f"a {name}")
    if unknown:
        raise UserError(f"tokenizer {folder}: it does not know {', '.join(map(str, unknown))}; {remedy}")
    if is_word_level(tokenizer):  # a small vocabulary knows what it knows
        return tokenizer
    try:
        row = list(tokenizer(PROBE)["input_ids"])
        own = list(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    except Exception as error:  # an entry of tokenizer_config.json that is used only now
        raise UserError(
            f"tokenizer {folder}: it cannot write {PROBE!r} ({error}); fetch tokenizer_config.json again"
        ) from error
    if not own or all(token == tokenizer.unk_token_id for token in own):
        raise UserError(f"tokenizer {folder}: every word of {PROBE!r} is unknown to it; {remedy}")
    for name, token in ((first, row[0]), (last, row[-1])):
        if name and token != getattr(tokenizer, f"{name}_id"):
            where = "before" if name == first else "behind"
            raise UserError(f"tokenizer {folder}: no {name} stands {where} its texts; {remedy}")
    return tokenizer


def token_id(tokenizer: Any, token: str) -> int | None:
    """The id of a token; None if it is not in the vocabulary."""
    return tokenizer.get_vocab().get(token)


# --- what is asked of texts -------------------------------------------------------------------------------------------


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


def check_ids(tokenizer: Any, folder: Any, expected: Mapping[str, tuple[str | None, int]]) -> None:
    """Refuses a tokenizer that numbers a special token otherwise than its model's config does.

    Args:
      expected: what it is called in the config -> (the token, the config's id).

    Raises:
      UserError: names the first that disagrees.
    """
    for name, (token, config_id) in expected.items():
        own = token_id(tokenizer, token) if token is not None else None
        if own != config_id:
            raise UserError(
                f"{folder}: {name} is {config_id} in its config.json, but its tokenizer has {token!r} as {own};"
                " give config and tokenizer of one model"
            )
