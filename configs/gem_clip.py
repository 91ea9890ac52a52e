"""GEM on a frozen CLIP. Variants: none, a published CLIP; `tiny`, the small CLIP that ships, all methods evaluated.
`eval=SET` evaluates on a published set (docs/data.md), `protocol=gem`, `sclip` or `proxyclip` as its authors do.

python main.py --config=configs/gem_clip.py --config.image=photo.jpg --config.prompts='cat,remote control' --workdir=out
python main.py --config=configs/gem_clip.py:tiny --workdir=out
python main.py --config=configs/gem_clip.py:eval=voc --config.data_dir=VOCdevkit --workdir=out
python main.py --config=configs/gem_clip.py:eval=voc,protocol=proxyclip --config.data_dir=VOCdevkit --workdir=out
"""

from ml_collections import ConfigDict, config_dict

from configs.lib import protocols, variants

VARIANTS = {
    "": "a published CLIP, on one's own pictures or a published set",
    "tiny": "the small CLIP that ships, all methods evaluated",
}
CHOICES = {"eval": variants.evaluate_maps, "protocol": protocols.follow}


def get_config(variant: str = "") -> ConfigDict:
    """The run that `variant` names; every entry can be overridden on the command line."""
    variant, chosen = variants.parse(variant, "configs/gem_clip.py", VARIANTS, CHOICES)
    tiny = variant == "tiny"
    config = ConfigDict()
    config.program = "gem"
    config.run = "evaluate" if tiny else "predict"  # predict, evaluate

    # The frozen model: a folder, or a hub id; and its second stream.
    config.model = "assets/tiny_clip" if tiny else "openai/clip-vit-base-patch16"
    config.activation = ""  # quick_gelu or gelu, against what the model's name or config says
    config.dtype = "float32"
    # clip, maskclip, clip_surgery, sclip, clearclip, naclip, naclip_log, proxyclip, corrclip, gem
    config.attention = "gem"
    # The other encoder of ProxyCLIP and CorrCLIP: DINO or DINOv2, or the small VLM's, which learned without CLIP.
    config.proxy = "assets/tiny_flamingo" if tiny else "facebook/dino-vitb8"
    config.regions = "slic"  # or a folder of masks, NAME.png or NAME.npz: corrclip keeps to them, and refine=regions
    config.merge = 0.8  # corrclip's regions are one from this cosine on; 2 merges none
    config.refine = ""  # of the maps at the end: pamr or regions
    config.depth = 7  # the last 6 blocks carry GEM's and CLIP Surgery's second stream
    config.iterations = 1
    config.temperature = 0.0  # 0 is the adaptive one
    config.parts = "qkv"
    # Images are squashed to it: a side, or (height, width); 0 is the model's own.
    config.size = config_dict.FieldReference(160 if tiny else 448, field_type=object)
    config.templates = ("A photo of {article} {}.",) if tiny else ("a photo of a {}.",)
    config.prompt_set = ""  # openai_80 or openai_7, in the place of config.templates
    config.batch_size = 8
    # Sliding windows for large images: side and stride in pixels, and the shorter side after resizing; 0 is off.
    config.window, config.stride, config.shorter = 0, 0, 0
    config.stitch = False  # a picture's windows share the last block's attention (OV-Stitcher)

    # Prediction on one's own pictures (a comma between several).
    config.image = ""
    config.prompts = ""
    config.box_threshold = 0.5  # of a min-max map
    config.background_threshold = 0.0  # probability under which a pixel of segmentation.png is background; 0 is none

    # Evaluation: scenes; voc, context, context60, ade20k, coco_object, coco_stuff, cityscapes, openimages; PIN's sets
    # of boxes; labels:DIR (Pascal VOC's form) or points:DIR (OpenImages V7's form). See docs/data.md.
    config.source = "scenes"
    config.images = 0  # of a published set the first so many; 0 is all
    config.names = "readable"  # what classes are called: published, readable, sclip (input_pipeline/sets/names)
    variants.data(config)
    variants.select(config)  # of sets of boxes
    config.background = True  # labels:DIR: 0 is background (VOC); False leaves it out (ADE20K, Context)
    config.thresholds = ()  # of the background's probability; () sweeps, and reports the best
    config.logit_scale = 0.0  # of the cosines there; 0 is the model's own
    config.smallest_area = 0.0  # share of the classes' pixels up to which a class is given up in a picture
    config.point_threshold = 0.5
    config.methods = ("clip", "maskclip", "clip_surgery", "sclip", "clearclip", "naclip", "naclip_log", "gem")
    if tiny:  # a sharper temperature than the adaptive one helps there (docs/gem.md)
        config.methods += ("proxyclip", "corrclip", "gem temperature=10", "gem refine=pamr")
    # Scenes of what the small CLIP never saw: pairs of name and tint, and backgrounds, kept out of its training.
    config.grid = 16
    config.scenes = ConfigDict(
        {
            "cutouts": "twemoji",
            "backgrounds": "photos",
            "split": "all",
            "background_split": "held_out",
            "pairs": "held_out",
            "look_slots": ("colour",),
            "look_share": 1.0,
            "objects": (1, 3),
            "smallest": (6, 5, 4),
            "crop": 0.4,
        }
    )
    # For each seed so many names are drawn, each in its two tints kept out; all are asked for in every image.
    config.eval = ConfigDict({"seeds": (0, 1, 2), "seed": 3_000_000, "images": 128, "nouns": 10})
    return variants.apply(config, chosen, CHOICES)
