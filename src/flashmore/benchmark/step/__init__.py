"""What a whole training step costs under one attention backend and another."""
