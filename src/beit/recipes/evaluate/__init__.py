"""`beit evaluate`."""
