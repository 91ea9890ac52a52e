"""The words around a box: the question, and the target that follows it (PIN's released code)."""

from __future__ import annotations

import dataclasses
import re
import string
from typing import Any

PLACES = re.compile("(<image>)+")  # of an image in a text


@dataclasses.dataclass(frozen=True)
class Frame:
    """What a VLM wants around prompt and answer, as text; the default is Flamingo's.

    Attributes:
      prefix: before the prompt, the image's places among it. separator: behind the prompt. suffix: behind the answer.
      encoder_decoder: prompt and answer are two texts, the encoder's and the decoder's, instead of one.
    """

    prefix: str = "<image>"
    separator: str = ""
    suffix: str = ".<|endofchunk|>"
    encoder_decoder: bool = False

    def prompt(self, text: str) -> str:
        """What the model goes on from."""
        return self.prefix + text + self.separator

    def behind(self, said: str, asked: str, answer: str) -> Frame:
        """The same behind a worked example in words: `said` stands where its image would, `asked` where prompts stand,
        and what stands around them and the answer is the frame's own."""
        example = f"{PLACES.sub(lambda _: said, self.prefix)}{asked}{self.separator}{answer}{self.suffix}"
        return dataclasses.replace(self, prefix=f"{example}\n{self.prefix}")


def article(name: str) -> str:
    """`an` before a vowel letter, else `a`."""
    return "an" if name[:1].lower() in tuple("aeiou") else "a"


def question(name: str) -> str:
    """`In the image is a NAME located at`: what stands in front of ` [x1,y1,x2,y2]`."""
    return f"In the image is {article(name)} {name} located at"


def prompt_and_target(name: str, box_text: str, curriculum: bool = False) -> tuple[str, str]:
    """Prompt and target of one training text.

    In the curriculum phase the target starts right after `In the image is a`, so the name is predicted too. (`an` stays
    whole in the prompt: no token is cut.)
    """
    prompt = question(name)
    cut = prompt.index(f" {name} located at") if curriculum else len(prompt)
    return prompt[:cut], prompt[cut:] + box_text


def is_template(value: Any) -> bool:
    """Whether a text is a template that a name goes into: one `{}`, at most one `{article}`, no other field."""
    if not isinstance(value, str):
        return False
    try:
        fields = [field[1:] for field in string.Formatter().parse(value) if field[1] is not None]
    except ValueError:
        return False
    names = [name for name, _, _ in fields]
    plain = not any(spec or conversion for _, spec, conversion in fields)
    return plain and names.count("") == 1 and len(names) - 1 == names.count("article") <= 1


def is_example(value: Any) -> bool:
    """Whether a value is an example in words: nothing, or three texts that bring no tokens of a VLM's own."""
    texts = isinstance(value, (tuple, list)) and all(isinstance(text, str) for text in value)
    return texts and len(value) in (0, 3) and not set("".join(value)) & set("<\n\0")
