"""The session screen: a terminal application around one attempt. ``app`` is where to begin."""
