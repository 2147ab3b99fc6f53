"""What a run, a comparison of runs and a search show to a person: pages, and the figures of each beside it."""
