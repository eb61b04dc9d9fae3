"""The demonstration: synthetic street scenes, a simulated annotator and the loop run over them."""
