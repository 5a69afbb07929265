"""Episodes for the tests of the corpus, without pytest or hypothesis: the writers that get killed import this too."""

import numpy as np

from flywheel.episode import Episode


def episode(seed, steps=None, width=3, task="lift", origin="human:vr", success=True, **more):
    """A small episode that follows from its seed; its arrays differ from those of any other seed."""
    random = np.random.default_rng(seed)
    steps = int(random.integers(2, 9)) if steps is None else steps
    return Episode(
        task=task,
        obs={"state": random.normal(size=(steps + 1, width)).astype(np.float32)},
        action=random.normal(size=(steps, 2)).astype(np.float32),
        reward=random.normal(size=steps).astype(np.float32),
        terminated=bool(success),
        success=success,
        origin=origin,
        seed=seed,
        fps=20.0,
        **more,
    )


def same(a, b):
    """Equal to the last bit, dtypes, shapes, keys and scalars included."""
    for name in ("obs", "extras", "start"):
        left, right = getattr(a, name), getattr(b, name)
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert (type(value), value.dtype, value.shape) == (type(right[key]), right[key].dtype, right[key].shape), (
                key
            )
            assert np.asarray(value).tobytes() == np.asarray(right[key]).tobytes(), key
    for name in ("action", "reward"):
        left, right = getattr(a, name), getattr(b, name)
        assert (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes()), name
    for name in ("task", "terminated", "success", "origin", "seed", "fps", "meta"):
        left, right = getattr(a, name), getattr(b, name)
        assert left == right and type(left) is type(right), name
    assert a.hash == b.hash
