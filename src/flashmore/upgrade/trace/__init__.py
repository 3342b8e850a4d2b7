"""Real inputs from the user's own example or script."""
