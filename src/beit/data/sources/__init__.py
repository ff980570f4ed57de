"""What `--data` may name: images by index, wherever they lie."""
