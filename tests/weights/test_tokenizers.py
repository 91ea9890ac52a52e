"""Tokenizer folders of every published model are read as meant; broken and foreign ones are one line."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import CLIPTokenizerFast, PreTrainedTokenizerFast

from input_pipeline.errors import UserError
from pin_jax.weights import tokenizers
from tests.fixtures import published
from tests.fixtures.golden_files import ROOT

KINDS = {  # what writes it, how it is read
    "opt": (published.opt, tokenizers.BYTE_LEVEL, {"classes": ("GPT2Tokenizer",), "special": ("</s>", "<image>")}),
    "t5": (published.flan_t5, tokenizers.SENTENCEPIECE, {"classes": ("T5Tokenizer",), "special": ("</s>", "<image>")}),
    "clip": (
        published.clip,
        tokenizers.BYTE_LEVEL,
        {"loader": CLIPTokenizerFast, "first": "bos_token", "last": "eos_token"},
    ),
    "mpt": (published.mpt, tokenizers.FAST, {"loader": PreTrainedTokenizerFast, "special": ("<|endoftext|>",)}),
    "siglip": (published.siglip, tokenizers.SENTENCEPIECE, {"classes": ("SiglipTokenizer",), "last": "eos_token"}),
    "siglip2": (published.siglip2, tokenizers.SENTENCEPIECE, {"classes": ("GemmaTokenizer",), "last": "eos_token"}),
    "blip": (published.blip, tokenizers.WORDPIECE, {"first": "cls_token", "last": "sep_token", "classes": ("Bert",)}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind, and its number of tokens."""
    top = tmp_path_factory.mktemp("tokenizers")
    return {kind: (top / kind, write(top / kind)) for kind, (write, *_) in KINDS.items()}


def read(folder, kind, rows):
    _, vocabulary, options = KINDS[kind]
    return tokenizers.read(folder, rows, vocabulary, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_published_ones_are_read(folders, kind):
    folder, tokens = folders[kind]
    made = read(folder, kind, published.rows(tokens))
    assert len(made) == tokens
    ids = made("In the image is a cat located at", add_special_tokens=False)["input_ids"]
    assert len(set(ids)) > 5


@pytest.mark.parametrize("kind", KINDS)
def test_not_of_this_model(folders, kind):
    folder, tokens = folders[kind]
    with pytest.raises(UserError, match=f"ids up to {tokens - 1}, but the word embedding of its model has"):
        read(folder, kind, tokens - 1)
    with pytest.raises(UserError, match=f"{tokens} tokens, but the word embedding of its model has {3 * tokens} rows"):
        read(folder, kind, 3 * tokens)


BROKEN = (b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000)


@pytest.mark.parametrize("kind", ["opt", "t5", "clip", "siglip"])
def test_broken_files_are_named(folders, kind, tmp_path):
    source, tokens = folders[kind]
    for name in sorted(path.name for path in source.iterdir() if path.name != "processor_config.json"):
        for i, data in enumerate(BROKEN if name.endswith(".json") else (b"\xff\xfe",)):
            folder = shutil.copytree(source, tmp_path / f"{name}-{i}")
            (folder / name).write_bytes(data)
            with pytest.raises(UserError, match=name) as caught:
                read(folder, kind, published.rows(tokens))
            assert "\n" not in str(caught.value)


ODD = (
    {"pad_token": 5}, {"eos_token": []}, {"model_max_length": "x"}, {"model_max_length": -5}, {"tokenizer_class": 7},
    {"added_tokens_decoder": []}, {"padding_side": "up"}, {"unk_token": {"a": 1}}, {"tokenizer_class": "BertTokenizer"},
)  # fmt: skip


@pytest.mark.parametrize("entry", ODD, ids=str)
def test_odd_entries_are_one_line(folders, entry, tmp_path):
    source, tokens = folders["opt"]
    folder = shutil.copytree(source, tmp_path / "m")
    held = json.loads((folder / "tokenizer_config.json").read_text()) | entry
    (folder / "tokenizer_config.json").write_text(json.dumps(held))
    with pytest.raises(UserError, match="tokenizer_config.json"):
        read(folder, "opt", published.rows(tokens))


def test_without_a_vocabulary(folders, tmp_path):
    """transformers would make an empty one of what is left."""
    for kind, (source, tokens) in folders.items():
        folder = shutil.copytree(source, tmp_path / kind)
        for name in ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model"):
            (folder / name).unlink(missing_ok=True)
        with pytest.raises(UserError, match="no vocabulary in it; it must hold tokenizer.json"):
            read(folder, kind, published.rows(tokens))


def test_merges_that_are_cut_short(folders, tmp_path):
    """Words would be written letter by letter, which no model was trained on."""
    source, tokens = folders["clip"]
    folder = shutil.copytree(source, tmp_path / "m")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match="merges.txt: .* tokens of vocab.json come of no merge"):
        read(folder, "clip", published.rows(tokens))


def test_a_package_that_is_missing_is_named(folders, monkeypatch):
    def fail(*_, **__):
        raise ImportError("SiglipTokenizer requires the sentencepiece library but it was not found")

    class Loader:
        from_pretrained = fail

    with pytest.raises(UserError, match="needs a package that is not installed; pip install sentencepiece"):
        tokenizers.parse(folders["siglip"][0], tokenizers.SENTENCEPIECE, Loader)


def test_unknown_words_are_refused_where_words_are_whole(folders):
    small = PreTrainedTokenizerFast.from_pretrained(ROOT / "assets" / "tiny_flamingo")
    texts = ["In the image is a cat", "In the image is a zeppelin"]
    rows = small(texts, add_special_tokens=False)["input_ids"]
    tokenizers.refuse_unknown_words(small, texts[:1], rows[:1])
    with pytest.raises(UserError, match="zeppelin.* words that this small model does not know"):
        tokenizers.refuse_unknown_words(small, texts, rows)
    folder, tokens = folders["opt"]
    opt = read(folder, "opt", published.rows(tokens))
    rows = opt(texts)["input_ids"]
    assert all(opt.unk_token_id in row for row in rows)  # `</s>`, which stands in front
    tokenizers.refuse_unknown_words(opt, texts, rows)
