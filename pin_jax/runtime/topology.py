"""TPU topologies for ahead-of-time compilation: the devices of a slice that is not there, and its chips' figures."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

from input_pipeline.errors import UserError

MOST_CHIPS = 256


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip by its maker's published figures: bfloat16 FLOP/s, bytes of HBM, bytes/s of HBM and between chips.

    `mode` is libtpu's name for the way JAX runs on the chip, where libtpu by itself describes another.
    """

    flops: float
    hbm: float
    hbm_rate: float
    link_rate: float
    mode: str = ""


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9, mode="megacore"),  # two cores, one device
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 448e9),
}


def describe(name: str) -> tuple[list[Any], Chip]:
    """The devices of a TPU slice, `v5e:4x4` for instance, and what each of them can do.

    Raises:
      UserError: an unknown slice, one of over 256 chips, or no libtpu.
    """
    match = re.fullmatch(r"(v\w+):(\d+(?:x\d+){1,2})", name)
    if not match or match[1] not in CHIPS:
        raise UserError(f"config.topology {name!r}: expected CHIP:AxB or CHIP:AxBxC, CHIP of {', '.join(CHIPS)}")
    chips = math.prod(int(n) for n in match[2].split("x"))
    if not 1 <= chips <= MOST_CHIPS:
        raise UserError(f"config.topology {name!r} has {chips} chips; from 1 to {MOST_CHIPS} are compiled for")
    # No TPU is opened, so neither its lock nor the metadata of a cloud machine matters.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies

    chip = CHIPS[match[1]]
    mode = {"chip_config_name": chip.mode} if chip.mode else {}
    try:
        devices = list(topologies.get_topology_desc(topology_name=name, platform="tpu", **mode).devices)
    except Exception as error:  # the plug-in raises many kinds
        hint = "" if importlib.util.find_spec("libtpu") else "; pip install libtpu"
        raise UserError(f"config.topology {name!r}: libtpu cannot describe it ({str(error)[:200]}){hint}") from error
    return devices, chip
