"""A class for every pixel: files, pairs with images, and what the numbers mean."""
