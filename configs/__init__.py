"""The runs. One ``*.config`` file is one run; ``base`` holds what runs share."""
