"""Lines that compute a known function, whatever their spelling: recognised by their values on arrays."""
