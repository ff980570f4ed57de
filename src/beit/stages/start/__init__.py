"""What training starts from: a model that was trained before, or values drawn at random."""
