"""Every hand-written kernel, and nothing else. Start at README.md: the map."""
