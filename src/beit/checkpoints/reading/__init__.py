"""Files that nobody has checked, read without executing anything."""
