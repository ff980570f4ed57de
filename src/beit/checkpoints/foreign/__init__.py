"""Other libraries' files: recognised, surveyed, and mapped to our names and back."""
