"""What the figures of a run say, in words: on the terminal, in results.json and in the report. No torch."""
