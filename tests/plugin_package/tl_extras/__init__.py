"""What a package adds to hf_tl: a pooling, a verb of policies, a head."""
