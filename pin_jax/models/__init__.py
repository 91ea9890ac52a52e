"""Pure Flax Linen modules, one file per published architecture, each with its config dataclass."""
