"""In this process, one after the other."""


def map(function, tasks, workers=1):
    """The result of each task."""
    return [function(*task) for task in tasks]
