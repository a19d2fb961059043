"""JUDGE: classifiers on top of embeddings."""
