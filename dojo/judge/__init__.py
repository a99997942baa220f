"""The judge: puts a file on trial against a kata's claims, in a process of its own."""
