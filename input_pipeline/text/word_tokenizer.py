"""The small models' tokenizer: one token per word or name, kept by transformers in its own file format."""

from __future__ import annotations

from collections.abc import Iterable

from input_pipeline.pasted import looks
from input_pipeline.text.box_codec import BoxCodec

PAD, IMAGE, END, UNKNOWN = "<pad>", "<image>", "<|endofchunk|>", "<unk>"
_WORDS = (
    "In The a an and photo of the image is located at looking like size colour pattern border"
    " in on left right above top below bottom middle center before behind front"
).split()


def vocabulary(names: Iterable[str], codec: BoxCodec) -> list[str]:
    """Every token, in the order of its id. A word keeps the space in front of it; words also stand in bare lists."""
    look_words = sorted({word for words in looks.SLOTS.values() for word in words})
    tokens = [PAD, IMAGE, END, UNKNOWN, " [", "]", ",", "."]
    tokens += [str(v) for v in codec.values]
    tokens += look_words + ["In", "The", "A"] + [f" {word}" for word in (*_WORDS[2:], *look_words)]
    tokens += [f" {name}" for name in sorted(set(names))]
    return list(dict.fromkeys(tokens))


def build(names: Iterable[str], codec: BoxCodec):
    """A transformers tokenizer over `vocabulary`; decoding gives back the text letter for letter."""
    import re

    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = vocabulary(names, codec)
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, UNKNOWN))
    # Longest first, whole words only, so that ` red apple` is a name and ` red` a colour.
    words = [re.escape(t) + r"(?![A-Za-z0-9])" for t in sorted(tokens[5:], key=len, reverse=True) if t[-1].isalnum()]
    pattern = "|".join([*words, re.escape(" ["), re.escape("]"), ",", re.escape(".")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[IMAGE],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
