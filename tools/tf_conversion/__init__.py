"""Conversion of checkpoints of RETURNN's TensorFlow backend; without TensorFlow."""
