"""Whether a request may come in at all."""
