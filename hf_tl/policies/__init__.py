"""TRAIN: what is frozen, tuned and reinitialised, layer by layer and phase by phase."""
