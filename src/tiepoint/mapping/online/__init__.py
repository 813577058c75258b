"""Images against a finished map, and cameras that move: localisation and tracking."""
