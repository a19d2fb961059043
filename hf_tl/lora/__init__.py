"""ADAPT: low-rank adapters on a frozen network, in PEFT's numbers and names."""
