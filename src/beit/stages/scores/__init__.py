"""What an encoder's features and a tokenizer's tokens are worth, without any training."""
