"""Text that an artifact generates."""
