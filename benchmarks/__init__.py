"""Benchmarks: mlabel beside its peers in one run, `python -m benchmarks.NAME [--quick]`."""
