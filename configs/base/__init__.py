"""What runs share: corpora, model sizes, training and recognition defaults."""
