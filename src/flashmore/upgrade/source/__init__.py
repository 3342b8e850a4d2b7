"""A function read as a graph of values: names, calls, branches, shapes; nothing runs."""
