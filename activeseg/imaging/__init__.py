"""Bytes to pixels, safely: orientation, 16 bit, CMYK, alpha, bombs, truncation; index masks; thumbnails. No torch."""
