"""GEM and its peers: zero-shot localisation from a frozen image-text model."""
