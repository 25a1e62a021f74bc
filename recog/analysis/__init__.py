"""What n-best files tell: scale tuning, oracles, significance, search errors. Pure functions, no programs."""
