"""Weights that lie elsewhere: released files and the Hugging Face Hub."""
