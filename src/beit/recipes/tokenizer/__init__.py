"""`beit tokenizer`."""
