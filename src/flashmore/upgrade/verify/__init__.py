"""Old lines and new lines on tensors, in a child process."""
