"""Check, then time, then say how sure."""
