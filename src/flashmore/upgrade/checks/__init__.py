"""What must hold of a function after it was edited, told from its syntax and not from the graph of values."""
