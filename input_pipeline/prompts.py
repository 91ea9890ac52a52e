"""The words around a box: the question, and the target that follows it (PIN's released code)."""

from __future__ import annotations

CURRICULUM_PREFIX = "In the image is a"


def article(name: str) -> str:
    """`an` before a vowel letter, else `a`."""
    return "an" if name[:1].lower() in tuple("aeiou") else "a"


def question(name: str) -> str:
    """`In the image is a NAME located at`: what stands in front of ` [x1,y1,x2,y2]`."""
    return f"In the image is {article(name)} {name} located at"


def split(name: str, box_text: str, curriculum: bool = False) -> tuple[str, str]:
    """Prompt and target of one training text.

    In the curriculum phase the target starts right after `In the image is a`, so the name is predicted too.
    """
    prompt = question(name)
    if curriculum:
        return prompt[: len(CURRICULUM_PREFIX)], prompt[len(CURRICULUM_PREFIX) :] + box_text
    return prompt, box_text
