"""Named sets of prompts: the 80 of CLIP's authors for ImageNet (Radford et al., ICML 2021), and the 7 they kept."""

from __future__ import annotations

# What a picture of it may be; each is said with `a` and with `the` in front of the name.
_PICTURES = (
    "art", "graffiti", "itap", "a photo", "a drawing", "a painting", "a sculpture", "a rendering", "a rendition",
    "a sketch", "a doodle", "a tattoo",
    *(f"a {kind} photo" for kind in ("good", "bad", "bright", "dark", "blurry", "cropped", "pixelated", "close-up",
                                     "low resolution", "jpeg corrupted", "black and white")),
)  # fmt: skip
_KINDS = ("clean", "dirty", "large", "small", "nice", "cool", "weird", "hard to see")
_MADE = ("plastic", "plushie", "toy", "origami", "cartoon", "embroidered")


def _openai_80() -> tuple[str, ...]:
    said = [f"{picture} of {article} {{}}." for picture in _PICTURES for article in ("a", "the")]
    said += [f"a photo of {article} {kind} {{}}." for kind in _KINDS for article in ("a", "the")]
    said += [f"{article} {made} {{}}." for made in _MADE for article in ("a", "the")]
    said += [f"{article} {{}} in a video game." for article in ("a", "the")]
    return (*said, *(f"{rest} {{}}." for rest in ("a photo of many", "a photo of one", "a photo of my", "itap of my")))


PROMPT_SETS = {
    "openai_80": _openai_80(),
    "openai_7": (
        "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.", "a {} in a video game.",
        "art of the {}.", "a photo of the small {}.",
    ),
}  # fmt: skip
