"""Records as a web page and as Markdown."""
