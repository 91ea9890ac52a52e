"""config.json of others and of our own models: entries that are computed, harmless or refused; sizes that fit."""
