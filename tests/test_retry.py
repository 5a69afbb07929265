"""Starts at which practice failed are tried again: by hand, and in real rounds."""

from types import SimpleNamespace

from small import LITTLE, call

from flywheel.rl import retry


def ended(seed: int, won: bool, **meta):
    return SimpleNamespace(seed=seed, success=won, meta=meta)


def test_failed_starts_stand_between_new_ones_and_are_at_most_a_share():
    """Of 6 episodes a third, so 2: after each 2 new ones one that failed; as many seeds as before."""
    seeds, again = retry.with_failed([1, 2, 3, 4, 5, 6, 7, 8], failed=[90, 91, 92], share=1 / 3, count=6)
    assert seeds == [1, 2, 90, 3, 4, 91, 5, 6] and again == {90, 91}
    assert retry.with_failed([1, 2, 3], [], 0.5, 3) == ([1, 2, 3], set())
    assert retry.with_failed([1, 2, 3], [9], 0.2, 3) == ([1, 2, 3], set()), "less than one"
    assert retry.with_failed([1, 2, 3, 4], [9], 0.5, 2) == ([1, 9, 2, 3], {9})
    assert retry.with_failed([1, 2], [7, 8, 9], 0.9, 100) == ([7, 8], {7, 8})


def test_a_start_waits_until_it_succeeds_and_faults_say_nothing():
    done = [
        ended(1, True),
        ended(2, False),
        ended(3, False, cause="it hung"),
        ended(4, False, start_from="demo"),
        ended(7, False),
    ]
    assert retry.waiting([7, 1, 5], done) == [5, 2, 7], "what failed again goes to the end"
    assert retry.waiting(list(range(600)), []) == list(range(100, 600))
    assert retry.words([ended(1, True, retry=True), ended(2, False, retry=True), ended(3, True)]) == "1 of 2"
    assert retry.words([ended(3, True)]) is None


def test_rounds_try_again_and_do_not_count_it(copied, capsys):
    """In retraining and online; such episodes are in the corpus, and no outcome of practice."""
    place, at = copied
    made = call(
        "pretrain", "policy=flow", "name=policy/again", "algorithm.cadence.improve=20", *LITTLE, *at, capsys=capsys
    )[1]
    rounds = ["rounds=3", "collect.episodes=8", "collect.n=4", "collect.retry=0.5", "batch_size=16", "score_every=0",
              "algorithm.cadence.evaluate=3", "algorithm.cadence.improve=3"]  # fmt: skip
    online = ["algorithm=ogpo", "rounds=3", "algorithm.cadence={evaluate: 2, improve: 2}", "batch_size=16", "score_every=3",
              "score_episodes=4", "algorithm.collect={steps: 120, retry: 0.5, n: 4}"]  # fmt: skip
    checkpoint = made["outputs"]["checkpoint"]
    for stage, words in (("retrain", rounds), ("online", online)):
        out = call(stage, f"checkpoint={checkpoint}", "name=policy/again", *words, *at, capsys=capsys)[1]
        assert out["status"] == "done", out
        content = place.find(out["run"])["content"]
        episodes = [place.corpus().at("latest").read(digest) for digest in content["episodes"]]
        again = [e for e in episodes if "retry" in e.meta]
        first = {e.seed for e in episodes if "retry" not in e.meta and not e.success}
        assert again and {e.seed for e in again} <= first, "each had failed before"
        assert len(content["outcomes"]) >= len(episodes) - len(again)
        assert len(content["outcomes"]) == sum(line["episodes"] for line in content["history"]) - sum(
            int(line.get("retried", "0").split()[-1]) for line in content["history"]
        )
        told = [line["retried"] for line in content["history"] if "retried" in line]
        tried = sum(int(words.split()[-1]) for words in told)
        assert tried >= len(again), "one that ends as before is the same episode"
        assert all(len([e for e in again if e.meta["round"] == k]) <= 4 for k in range(3)) or stage == "online"
        if stage == "retrain":
            checkpoint = out["outputs"]["checkpoint"]
