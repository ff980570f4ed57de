"""Images to grids of visual tokens and back."""
