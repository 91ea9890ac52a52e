"""Every row of the PIN table: baselines, other ways to adapt a frozen VLM, and PIN, with the same data and budget.

Variants: none, the small models that ship; `full`, the published ones (give cut-outs and backgrounds, docs/data.md);
`smoke`, minutes, to see that it runs. The same command goes on where it stopped.

  python main.py --config=configs/pin_table.py --workdir=runs/table
  python main.py --config=configs/pin_table.py --workdir=runs/table --config.models=flamingo --config.seeds='(0,)'
"""

from ml_collections import ConfigDict

VARIANTS = {
    "": "the small models that ship, hours on two cores",
    "full": "the published models, at the published budget",
    "smoke": "minutes, to see that it runs",
}


def get_config(variant: str = "") -> ConfigDict:
    """The table that `variant` names; every entry can be overridden on the command line."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/pin_table.py has no variant {variant!r}; expected none, full or smoke")
    config = ConfigDict()
    config.program = "pin_table"
    # Names, separated by commas; the entries below say which configs they are.
    config.models = "blip2,flamingo"
    config.configs = ConfigDict({"blip2": "configs/pin_blip2.py:tiny", "flamingo": "configs/pin_flamingo.py:tiny"})
    config.methods = "coop,vpt_f,vpt_v,lora_v,pin"
    config.context = (2, 5, 10)  # rows of worked examples; () for none
    config.seeds = (0, 1, 2)

    # The same for every method; None keeps what the model's config says.
    config.steps = (
        800  # of as many images as the model's config says, 32; docs/methods.md has the time of a step of each method
    )
    config.model_steps = ConfigDict({"blip2": 1500})  # of single models: the BLIP-2's are of 16 images
    config.cache_images = 8_000
    config.lr = 1.5e-3
    config.model_rates = ConfigDict({"blip2": 2e-4})  # of single models, where a rate is to differ
    config.rates = ConfigDict()  # of single methods, before those
    # Rates that every method is tried at first, for a few steps, on scenes (of this seed) that are not the table's;
    # each then gets its best one. () is none.
    config.sweep = ConfigDict({"rates": (), "steps": 300, "images": 128, "seed": 2_000_000})
    config.eval_images = 256
    config.overrides = ConfigDict()  # other entries of the models' configs, by their names: {"batch_size": 16}
    config.out = ""  # the workdir; else where the table goes, without .json, .md and .png
    if variant == "full":
        config.configs.update({"blip2": "configs/pin_blip2.py:opt-2.7b", "flamingo": "configs/pin_flamingo.py:3b"})
        config.steps, config.cache_images, config.lr, config.eval_images = 150_000, 0, 1e-3, 1024
        config.model_steps, config.model_rates = ConfigDict(), ConfigDict()
    if variant == "smoke":
        config.steps, config.cache_images, config.eval_images = 4, 64, 4
        config.seeds, config.context, config.model_steps = (0,), (2,), ConfigDict()
    config.scenes = ConfigDict({"cutouts": "", "backgrounds": ""})  # of all models, where given
    return config
