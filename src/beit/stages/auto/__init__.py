"""What `--preset auto` and `--budget` need to know before a run begins."""
