"""Which attention kernel can compute a call, told by tables that import no torch."""
