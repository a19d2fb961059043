"""What a package adds to hf_tl: a pooling, an action of policies, a head, a strategy."""
