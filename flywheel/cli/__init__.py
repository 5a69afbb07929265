"""The command line: stages by key=value, and commands that only look."""
