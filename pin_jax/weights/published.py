"""Every published model that is read here: its id on the hub, its number of parameters, what it was trained beside.

Plain data, which configs import too; shapes are in `pin_jax.models`, and `registry.architecture` finds them by id.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Model:
    """A published model.

    Attributes:
      id: on the hub; "" where its weights are in no layout that is read.
      parameters: as many as our parameter tree has, ties counted once.
      language_model, vision: ids of the models that it was trained beside and is read with (OpenFlamingo).
    """

    id: str
    parameters: int
    language_model: str = ""
    vision: str = ""


BLIP2 = {
    "opt-2.7b": Model("Salesforce/blip2-opt-2.7b", 3_744_761_856),
    "opt-6.7b": Model("Salesforce/blip2-opt-6.7b", 7_752_869_376),
    "flan-t5-xl": Model("Salesforce/blip2-flan-t5-xl", 3_942_446_592),
}

CLIP_L14 = "openai/clip-vit-large-patch14"


def _openflamingo(name: str, parameters: int, language_model: str) -> Model:
    return Model(f"openflamingo/OpenFlamingo-{name}", parameters, language_model, CLIP_L14)


# Plain and instruct models are of one shape.
OPENFLAMINGO = {
    "3b": _openflamingo("3B-vitl-mpt1b", 2_558_328_880, "anas-awadalla/mpt-1b-redpajama-200b"),
    "3b_instruct": _openflamingo(
        "3B-vitl-mpt1b-langinstruct", 2_558_328_880, "anas-awadalla/mpt-1b-redpajama-200b-dolly"
    ),
    "4b": _openflamingo("4B-vitl-rpj3b", 4_039_027_744, "togethercomputer/RedPajama-INCITE-Base-3B-v1"),
    "4b_instruct": _openflamingo(
        "4B-vitl-rpj3b-langinstruct", 4_039_027_744, "togethercomputer/RedPajama-INCITE-Instruct-3B-v1"
    ),
    "9b": _openflamingo("9B-vitl-mpt7b", 8_130_676_752, "anas-awadalla/mpt-7b"),
}

# The models for video are of the same shapes.
SMOLVLM = {
    "256m": Model("HuggingFaceTB/SmolVLM-256M-Instruct", 256_484_928),
    "256m_video": Model("HuggingFaceTB/SmolVLM2-256M-Video-Instruct", 256_484_928),
    "500m": Model("HuggingFaceTB/SmolVLM-500M-Instruct", 507_482_304),
    "500m_video": Model("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", 507_482_304),
    "2.2b": Model("HuggingFaceTB/SmolVLM-Instruct", 2_246_272_880),
}

# GEM's backbones by the names of `models.clip.BACKBONES`, SigLIP, and BLIP without its matching head.
IMAGE_TEXT = {
    "ViT-B/32": Model("openai/clip-vit-base-patch32", 151_277_313),
    "ViT-B/16": Model("openai/clip-vit-base-patch16", 149_620_737),
    "ViT-B/16-plus-240": Model("", 208_377_345),
    "ViT-L/14": Model(CLIP_L14, 427_616_513),
    "ViT-L/14-336": Model("openai/clip-vit-large-patch14-336", 427_944_193),
    "ViT-H/14": Model("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", 986_109_441),
    "SigLIP-B/16": Model("google/siglip-base-patch16-224", 203_155_970),
    "BLIP-B/16": Model("Salesforce/blip-itm-base-coco", 195_375_872),
}
