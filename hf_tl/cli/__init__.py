"""COMMAND LINE: hf-tl, a command a file."""
