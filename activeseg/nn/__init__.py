"""Everything torch: networks, training, scoring, checkpoints. Network channels exist only here and in core."""
