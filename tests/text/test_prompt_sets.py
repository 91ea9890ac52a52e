"""Named sets of prompts are those that were published."""

import hashlib

import pytest

from gem_jax import GEM
from input_pipeline.errors import UserError
from input_pipeline.text.prompt_sets import PROMPT_SETS
from input_pipeline.text.prompts import is_template


def test_they_are_the_published_ones():
    eighty, seven = PROMPT_SETS["openai_80"], PROMPT_SETS["openai_7"]
    assert len(set(eighty)) == 80 and set(seven) < set(eighty) and all(map(is_template, eighty))
    # of the sorted list in open_clip's zero_shot_metadata, one a line, {} for the name
    digest = "a8a4822f2921936e2ef07cf2e7a5df69be9532aab2f3f4880156bb03563e2467"
    assert hashlib.sha256("\n".join(sorted(eighty)).encode()).hexdigest() == digest


def test_a_set_is_named():
    assert GEM.from_pretrained("assets/tiny_clip", size=160, templates="openai_7").templates == PROMPT_SETS["openai_7"]
    with pytest.raises(UserError, match="templates 'openai': expected one of openai_80, openai_7, or texts"):
        GEM.from_pretrained("assets/tiny_clip", size=160, templates="openai")
