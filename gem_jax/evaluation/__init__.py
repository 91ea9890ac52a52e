"""Zero-shot evaluation of heat maps: one walk over a source, scored as segmentation, points and boxes."""
