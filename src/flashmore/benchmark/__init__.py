"""One file per question that is answered by measuring."""
