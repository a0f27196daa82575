"""A budget of bytes for one format: what every matrix could become there, at what cost, and which of it is chosen."""
