"""`beit check`."""
