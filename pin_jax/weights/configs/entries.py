"""Entries of a foreign config.json: each is computed, is known to change nothing, or is refused by its name.

A `Table` describes one config class of another library. What it does not know may change what a model computes, and a
model that computes something else gives wrong results without a word.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from input_pipeline.errors import UserError
from pin_jax.weights.files import short

# transformers' and open_clip's names of activations -> keys of `layers.ACTIVATIONS`
ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """What values an entry may have. says: in words; test: of a value."""

    says: str
    test: Callable[[Any], bool]


def _is_int(value: Any, low: int, high: int = 2**24) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


SIZE = Kind("a whole number from 1 on", lambda value: _is_int(value, 1))
ID = Kind("a token id, a whole number from 0 on", lambda value: _is_int(value, 0))
POSITIVE = Kind("a number over 0", lambda value: _is_number(value) and value > 0)
EPS = Kind("a number between 0 and 1", lambda value: _is_number(value) and 0 < value < 1)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
ACTIVATION = Kind(f"one of {', '.join(ACTIVATIONS)}", lambda value: isinstance(value, str) and value in ACTIVATIONS)
SHARE = Kind("a number over 0, at most 1", lambda value: _is_number(value) and 0 < value <= 1)


def optional(kind: Kind) -> Kind:
    """The kind, or null."""
    return Kind(f"{kind.says}, or null", lambda value: value is None or kind.test(value))


def one_of(first: Any, *others: Any) -> Kind:
    """One of a few values, of the same type."""
    values = (first, *others)
    return Kind(
        f"one of {', '.join(map(repr, values))}" if len(values) > 1 else repr(first),
        lambda value: any(_same(value, known) for known in values),
    )


def _same(a: Any, b: Any) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool)


REQUIRED = object()  # a default that there is none

# Of every config of transformers: who wrote it and how, what is printed, how texts are generated, how it was trained.
TRANSFORMERS = tuple(
    """_name_or_path name_or_path _commit_hash architectures auto_map model_type transformers_version torch_dtype dtype
    tokenizer_class tokenizer_name processor_class id2label label2id num_labels problem_type finetuning_task
    task_specific_params output_hidden_states output_attentions return_dict use_return_dict output_past torchscript
    use_bfloat16 tf_legacy_loss use_cache chunk_size_feed_forward gradient_checkpointing _attn_implementation
    attn_implementation _attn_implementation_internal _attn_implementation_autoset _experts_implementation
    is_encoder_decoder is_decoder add_cross_attention cross_attention_hidden_size tie_encoder_decoder
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens prefix
    bos_token_id eos_token_id sep_token_id pad_token_id decoder_start_token_id label_smoothing verbose""".split()
)
# Regularisation and initialisation act in training alone.
TRAINING = (
    r".*dropout.*",
    r".*pdrop.*",
    r"layerdrop",
    r"drop_path_rate",
    r"initializer_.*",
    r"init_.*",
    r".*_init_std",
)


@dataclasses.dataclass(frozen=True)
class Table:
    """The entries of one config class.

    Attributes:
      computed: name -> (kind, default); the default of the class, which published files leave out, or `REQUIRED`.
      fixed: name -> the values that our modules compute, of options that they do not have; absent is as the first.
      harmless: regular expressions of entries that change nothing of what is computed.
      parts: entries that are read by a table of their own.
      training: entries of regularisation and initialisation are harmless.
    """

    computed: Mapping[str, tuple[Kind, Any]]
    fixed: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    harmless: Sequence[str] = TRANSFORMERS
    parts: Sequence[str] = ()
    training: bool = True

    def read(self, held: Any, where: str) -> dict[str, Any]:
        """The computed entries, with defaults for those that are absent.

        Args:
          held: what the file holds, an object.
          where: what the error calls it.

        Raises:
          UserError: lists every entry that is of the wrong kind, or that is unknown.
        """
        if not isinstance(held, Mapping):
            raise UserError(f"{where}: {short(held)}; expected an object {{...}} of config entries")
        known = re.compile("|".join(f"(?:{p})" for p in (*self.harmless, *(TRAINING if self.training else ()))))
        problems = []
        for name, value in held.items():
            if name in self.computed:
                kind = self.computed[name][0]
                if not kind.test(value):
                    problems.append(f"{name} is {short(value)}, expected {kind.says}")
            elif name in self.fixed:
                kind = one_of(*self.fixed[name])
                if not kind.test(value):
                    problems.append(f"{name} is {short(value)}, but only {kind.says} is computed here")
            elif name not in self.parts and not known.fullmatch(name):
                problems.append(f"{short(name)} ({short(value)}) is not known here and may change what is computed")
        out = {name: held.get(name, default) for name, (_, default) in self.computed.items()}
        missing = [name for name, value in out.items() if value is REQUIRED]
        if missing:
            problems.insert(0, f"lacks {', '.join(map(repr, missing))}")
        if problems:
            raise UserError(
                f"{where}: {'; '.join(problems)}; give a published model of this kind as its makers wrote it"
            )
        return out


def part(held: Mapping[str, Any], name: str, where: str, required: bool = False) -> Mapping[str, Any]:
    """One part of a config, an object; absent or null counts as empty.

    Raises:
      UserError: it is something else, or missing.
    """
    value = held.get(name)
    if value is None and not required:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: {name} is {short(value)}; expected an object {{...}} of config entries")
    return value


# --- pixels -----------------------------------------------------------------------------------------------------------

_PIXELS = Kind(
    "three numbers",
    lambda value: (
        value is None
        or (isinstance(value, list | tuple) and len(value) == 3 and all(_is_number(x) and abs(x) < 1000 for x in value))
    ),
)
# Image size, crop and resampling are the run's own choice.
PREPROCESSOR = Table(
    computed={"image_mean": (_PIXELS, None), "image_std": (_PIXELS, None)},
    fixed={
        "do_normalize": (True, None),
        "do_rescale": (True, None),
        "rescale_factor": (1 / 255, None),
        "do_flip_channel_order": (False, None),
        "offset": (False, None),
    },
    harmless=tuple(
        """do_resize size size_divisor resample do_center_crop crop_size crop_pct default_to_square do_convert_rgb
        do_pad pad_size image_processor_type feature_extractor_type processor_class _processor_class
        _valid_processor_keys data_format input_data_format device return_tensors disable_grouping auto_map backend
        do_thumbnail do_align_long_axis do_random_crop interpolation num_query_tokens transformers_version""".split()
    ),
)


def pixel_statistics(
    mean: Any, std: Any, default: tuple[Sequence[float], Sequence[float]], where: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pixels in [0, 1]; null counts as the default of its kind of model.

    Raises:
      UserError: not three numbers each, or a deviation that is not over 0.
    """
    for name, value in (("mean", mean), ("std", std)):
        if not _PIXELS.test(value):
            raise UserError(f"{where}: {name} of the pixels is {short(value)}; expected three numbers")
    mean, std = (tuple(map(float, d if v is None else v)) for v, d in zip((mean, std), default, strict=True))
    if min(std) <= 0:
        raise UserError(f"{where}: std of the pixels is {list(std)}; expected three numbers over 0")
    return mean, std


def known_names(meta: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The names that a small model knows, a list of texts.

    Raises:
      UserError: something else.
    """
    names = meta.get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(f"{where}: names is {short(names)}; expected a list of names")
    return tuple(names)
