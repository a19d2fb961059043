"""READ: the activations of every layer of a network, as features."""
