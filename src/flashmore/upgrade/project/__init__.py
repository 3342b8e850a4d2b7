"""What the rest of a project does with a file's attention; nothing of it runs."""
