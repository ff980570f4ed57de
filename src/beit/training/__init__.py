"""The machinery of every recipe: one loop, and a run directory that survives anything. It knows no model."""
