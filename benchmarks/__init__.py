"""Benchmarks: `python -m benchmarks NAME --json FILE`. None of them gates a test on time."""
