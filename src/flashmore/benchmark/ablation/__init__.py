"""Measures each documented speed-up, added cumulatively and left out individually."""
