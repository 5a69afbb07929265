"""Recordings of others on their way into the corpus: which files, what may enter, what is set aside and why."""
