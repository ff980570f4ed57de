"""One decoded image -> what a network is shown, as uint8. All randomness comes from the generator that is passed.

A view is called as ``view(image, rng)`` with an image uint8 (3, H, W) of any size, and returns a sample: a NamedTuple
of :mod:`beit.data.batches` without the batch axis.
"""
