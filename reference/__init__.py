"""The answers: complete, correct, and meant to be read. Nothing here knows of the dojo."""
