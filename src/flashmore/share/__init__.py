"""Sharing a run: a web page, attention maps, exports and imports."""
