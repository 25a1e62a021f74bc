"""Transcription of any audio file: audio and where to cut it, recognition with times, output formats."""
