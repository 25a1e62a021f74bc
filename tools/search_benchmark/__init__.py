"""What tools/benchmark_search.py measures: settings, the usual ways to do the same, timing."""
