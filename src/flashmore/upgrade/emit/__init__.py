"""The pieces of the call that replaces an attention."""
