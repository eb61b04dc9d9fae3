"""The pure core: tensors and values in, values out. No database, HTTP, files, clock or settings."""
