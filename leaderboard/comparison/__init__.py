"""What figures are beside those of papers or of another run, and what moved between two runs."""
