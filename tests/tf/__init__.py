"""Networks for TensorFlow; see ``make test-tf``."""
