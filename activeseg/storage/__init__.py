"""Where bytes live: image sources (local folders, object stores) and the artifact store. Knows nothing of pixels."""
