"""What each documented speed-up brings: added one after the other, and left out alone."""
