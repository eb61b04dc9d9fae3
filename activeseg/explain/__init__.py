"""Pictures a person looks at: label maps, overlays, heat maps, panels, curves. Values in, `PIL.Image` out, no files."""
