"""Jupyter notebooks as Python sources; edits of these as edits of their bytes."""
