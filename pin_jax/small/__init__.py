"""How the small models that ship are made, stage by stage."""
