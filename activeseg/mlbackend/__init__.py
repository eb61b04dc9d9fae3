"""Live predictions for Label Studio: the machine-learning backend it can be connected to. A process of its own."""
