"""Published evaluation sets: a registry, one reader a set, which of their objects are asked for, bad records."""
