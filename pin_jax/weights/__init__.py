"""Published checkpoints -> parameters of our modules, by one table of rules per architecture."""
