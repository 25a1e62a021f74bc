"""Programs around the runs. Each is a short main over library code; see the README for the list."""
