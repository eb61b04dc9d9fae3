"""Live predictions: the calls Label Studio makes to a machine-learning backend, answered by the champion."""
