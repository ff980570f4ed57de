"""An image file becomes a batch: sources -> decode -> views -> loaders."""
