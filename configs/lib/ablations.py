"""What may stand behind a model in a variant: the method, and the paper's ablations.

All but `grid` change training alone: they are tested on the same scenes.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from input_pipeline.errors import UserError

# Widths of psi's hidden layers by their number; 2 is the paper's.
DEPTHS = {"0": (), "1": (768,), "2": (512, 768), "3": (512, 768, 768)}


def _method(config: ConfigDict, value: str) -> None:
    from pin_jax import methods  # not above: it imports JAX, which most configs need not wait for

    config.method = value
    try:
        config.method_options = ConfigDict(methods.defaults(value))
    except UserError as error:  # what is wrong with a config is a ValueError
        raise ValueError(str(error)) from error


def _of_pin(config: ConfigDict) -> ConfigDict:
    """PIN's options, alone or among other methods."""
    options = config.method_options
    options = options.get("pin", options)
    if "hidden" not in options:
        raise ValueError(f"method {config.method!r} has no insert; positions= and depth= are of pin")
    return options


def _positions(config: ConfigDict, value: str) -> None:
    _of_pin(config).learned = _choose("positions", value, {"sinusoid": False, "learned": True})


def _depth(config: ConfigDict, value: str) -> None:
    _of_pin(config).hidden = _choose("depth", value, DEPTHS)


def _objects(config: ConfigDict, value: str) -> None:
    config.train_scenes.objects = (1, int(_choose("objects", value, {str(n): n for n in range(1, 9)})))


def _grid(config: ConfigDict, value: str) -> None:
    """Sizes are in cells, and go with the grid: objects stay as large as they were."""
    grid = _choose("grid", value, {str(n): n for n in (4, 7, 8, 10, 14, 16, 20, 28, 32)})
    config.grid = grid
    config.scenes.smallest = tuple(max(1, round(s * grid / 16)) for s in config.scenes.smallest)


def _curriculum(config: ConfigDict, value: str) -> None:
    config.curriculum = _choose("curriculum", value, {"on": 0.25, "off": 0.0})


def _referrals(config: ConfigDict, value: str) -> None:
    twins, absolute = _choose("referrals", value, {"on": (0.5, 0.3), "off": (0.0, 0.0)})
    config.train_scenes.update({"twins": twins, "absolute_share": absolute})
    if config.text_length and value == "on":
        config.text_length += 3  # `X on left`


def _choose(option: str, value: str, known: dict):
    if value not in known:
        raise ValueError(f"{option}={value}: expected one of {', '.join(known)}")
    return known[value]


CHOICES = {  # the method first, as others change its options
    "method": _method,
    "positions": _positions,
    "depth": _depth,
    "objects": _objects,
    "grid": _grid,
    "curriculum": _curriculum,
    "referrals": _referrals,
}
