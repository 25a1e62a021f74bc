"""
One interface for everything that scores the next label: attention decoder, language models, internal language models.
"""
