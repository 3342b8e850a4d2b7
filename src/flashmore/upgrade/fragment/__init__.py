"""The lines of one attention as functions of their inputs, for a test."""
