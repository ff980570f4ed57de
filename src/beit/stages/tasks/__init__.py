"""What verbs of one task share."""
