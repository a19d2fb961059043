"""ADAPT: low-rank updates beside frozen weights."""
