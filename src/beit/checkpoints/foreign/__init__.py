"""Other libraries' files: recognized, surveyed, and mapped to our names and back."""
