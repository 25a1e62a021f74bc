"""Parts of tools/results.py: tables, plots, and rows from finished runs."""
