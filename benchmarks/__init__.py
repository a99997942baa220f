"""Reference against what a user would pick instead: commands that print figures."""
