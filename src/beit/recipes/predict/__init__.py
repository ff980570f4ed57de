"""`beit predict`."""
