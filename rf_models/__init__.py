"""Models as :class:`returnn.frontend.Module`, and the training steps beside what they train."""
