"""Models that run at the edge itself, for when no region has room. None ships yet."""
