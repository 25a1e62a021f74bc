"""Recognition: pure search in ``core``, one scorer interface in ``scorers``, RETURNN entry points on top."""
