"""The nearest class mean."""


def centroid(C: object, shape: tuple[int, int]) -> object:
    """A classifier without a weight of the loss, so that C says nothing."""
    from sklearn.neighbors import NearestCentroid

    return NearestCentroid()
