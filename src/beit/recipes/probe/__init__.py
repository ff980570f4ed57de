"""`beit probe`."""
