"""The report: what it says for full, partial, empty and hostile stores, and what a real browser makes of it."""

import base64
import html.parser
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import sys
from dataclasses import dataclass, field

import flywheel_sim
import numpy as np
import pytest

from flywheel import report, stats, store
from flywheel.episode import Episode
from flywheel.report import clips, facts, page, rails, results, sections, starts, words
from flywheel.runs import ancestry
from flywheel.runs.run import Store

TASK = {"name": "gym", "id": "NoSuchTask-v0", "max_steps": 40}
HOSTILE = "<script>hacked=1</script>\"'><img src=x onerror=hacked=1></style>&amp; $\\frac{ \x1b[1m 🤖 \ud800"


# -- a store made by hand, as the stages would -----------------------------------------------------------------------


def finish(place, stage, key, *, inputs=None, result=None, content=None, config=None, hour=0, log=()):
    """A finished run."""
    folder = store.make_dirs(place.root / "runs" / stage / key / "out").parent
    done = {
        "stage": stage,
        "key": key,
        "identity": {"config": {"task": TASK, **(config or {})}},
        "inputs": inputs or {},
        "result": {"status": "done", "run": f"{stage}/{key}", "outputs": {}, "metrics": {}, "seconds": 61.5}
        | (result or {}),
        "content": content or {},
        "files": {},
        "finished": f"2025-11-22T{hour:02d}:41:07Z",
    }
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log) + '{"kind": "lear')
    store.write_json(folder / "_DONE.json", done)
    number = len(place.runs())
    os.utime(folder / "_DONE.json", ns=(number * 10**9, number * 10**9))
    return f"{stage}/{key}"


def episode(rng, origin, success, **meta):
    steps = int(rng.integers(10, 40))
    reward = np.zeros(steps, np.float32)
    reward[-1] = success
    return Episode(
        task="NoSuchTask-v0", obs={"state": rng.normal(size=(steps + 1, 3)).astype(np.float32)},
        action=rng.normal(size=(steps, 2)).astype(np.float32), reward=reward, terminated=success, success=success,
        origin=origin, seed=int(rng.integers(1000)), fps=20.0, meta=meta,
    )  # fmt: skip


def columns(rng, rate, n=120):
    """Scores of n seeds; failures lie where the second entry of the first observation is large."""
    obs0 = np.column_stack([np.full(n, 0.5), rng.uniform(-1, 1, (n, 3))])
    success = obs0[:, 2] < np.quantile(obs0[:, 2], rate)
    steps = np.where(success, rng.integers(5, 30, n), 40)
    seed = 200_000_000 + np.arange(n)
    return {"seed": seed, "success": success, "success_at_end": success, "steps": steps, "length": steps, "obs0": obs0}


def ingest(place, rng, text="", hour=1):
    done = [episode(rng, f"human:vr{text}", bool(rng.random() < 0.8), file=f"a{text}.hdf5") for _ in range(20)]
    added = place.corpus(create=True).append(done, message="ingest", time="2025-11-22T01:00:00Z")
    bad = [{"file": f"b{text}.hdf5", "episode": 3, "reason": f"b.hdf5, episode 3: action is [T, 6]{text}"}]
    files = [f"a{text}.hdf5", f"b{text}.hdf5"]
    return finish(
        place, "ingest", "11aa", inputs={"source": {"id": "f0", "ref": "*.hdf5", "files": files}}, hour=hour,
        result={"metrics": {"added": 20, "duplicates": 0, "quarantined": 1}},
        content={"episodes": added.added, "quarantined": bad},
    )  # fmt: skip


def corpus_input(text=""):
    return {
        "id": "c0ffee" * 8,
        "version": 1,
        "ref": 1,
        "episodes": 16,
        "origins": {f"human:vr{text}": 16},
        "files": [f"a{text}.hdf5"],
    }


def pretrain(place, name="policy/NoSuchTask-v0", text="", hour=2):
    curve = [
        {"updates": u, "file": "x", "policy.imitate": 1 / (1 + u / 1000), **stats.rate(np.arange(50) < 50 * s)}
        for u, s in ((1000, 0.2), (2000, 0.5), (3000, 0.54), (4000, 0.48))
    ]
    made = place.names.make(
        name, "a" * 64, "runs/pretrain/22bb/out/x", "pretrain/22bb", kind="pretrained", updates=3000
    )
    return finish(
        place, "pretrain", "22bb", inputs={"corpus": corpus_input(text)}, hour=hour, content={"curve": curve},
        result={"outputs": {"checkpoint": f"{name}@{made['id']}"}, "metrics": {"updates": 3000, "demonstrations": 16}},
        config={"algorithm": {"name": "bc", "improve": {"policy": {"imitate": {}}}}},
    )  # fmt: skip


def retrain(place, rng, key="33cc", name="policy/NoSuchTask-v0", parent="a" * 12, text="", hour=3):
    run, history, log = f"retrain/{key}", [], []
    for number in range(4):
        won = rng.random(12) < 0.5 + 0.12 * number
        own = [episode(rng, f"policy:{parent}{text}", bool(w), round=number, run=run) for w in won]
        along = [episode(rng, f"policy:{parent}{text}", True, round=number, run=run, start_from="x", start_step=3)]
        place.corpus().append([*own, *along], message=f"round {number}", author=run, time="2025-11-22T02:00:00Z")
        history.append({"round": number, "episodes": 13, "success": float(won.mean()), "from_demos": 0.9, "window_low": 0.85 - 0.1 * number, "steps": 300 * (number + 1), "clipped": 7, "held": 0})  # fmt: skip
        log.append(
            {
                "kind": "learned",
                "round": number,
                "q.td": 0.1 / (number + 1),
                "q.q": 0.6 + 0.05 * number,
                "q.q_std": 0.1,
                "policy.imitate": 0.4,
            }
        )
    made = [
        place.names.make(name, digit * 64, f"runs/{run}/out/x", run, kind=kind, updates=9000)
        for digit, kind in (("b", "retrained"), ("c", "best-of-N"))
    ]
    return finish(
        place, "retrain", key, hour=hour, log=log, content={"history": history, "episodes": []},
        inputs={"corpus": corpus_input(text), "checkpoint": {"id": parent, "ref": f"{name}@{parent}", "run": "pretrain/22bb"}},
        result={"outputs": {"policy": f"{name}@{made[0]['id']}", "checkpoint": f"{name}@{made[1]['id']}"}, "metrics": {"rounds": 4}},
        config={"algorithm": {"name": "rounds", "improve": {"policy": {"imitate": {}}}}},
    )  # fmt: skip


def evaluate(place, key, ref, scores, hour=4, seeded=True):
    rate = dict(stats.rate(scores["success"])) | {"success_at_end": float(scores["success_at_end"].mean())}
    rate["success_within_20"] = stats.rate(scores["success"] & (scores["steps"] <= 20))
    run = finish(
        place,
        "evaluate",
        key,
        inputs={"checkpoint": {"id": "x", "ref": ref}},
        content={"seeded": seeded},
        result={"metrics": rate},
        hour=hour,
    )
    np.savez(place.root / "runs" / run / "out" / "checkpoint.npz", **scores)
    return run, rate


def whole(root, text="", accept=True, name="policy/NoSuchTask-v0", seeded=True):
    """One nightly's store: ingest, pretrain, retrain, gate, evaluate."""
    place, rng = Store(root), np.random.default_rng(0)
    runs = [ingest(place, rng, text), pretrain(place, name, text), retrain(place, rng, name=name, text=text)]
    a, b, c = (digit * 12 for digit in "abc")
    place.names.promote(name, a, "nightly/77", "the first of its name: there is no incumbent to beat")
    reason = (
        f"candidate 0.880 [0.82, 0.92], incumbent 0.540 [0.47, 0.61] on 200 paired gate seeds; won 80, lost 12{text}"
    )
    runs.append(
        finish(
            place,
            "promote",
            "44dd",
            content={"reason": reason},
            result={"status": "done" if accept else "refused"},
            hour=4,
        )
    )
    (place.names.promote if accept else place.names.refuse)(name, c, "promote/44dd", reason)
    table = []
    for kind, key, id_, rate in (
        ("pretrained", "e1", a, 0.54),
        ("retrained", "e2", b, 0.75),
        ("best-of-N", "e3", c, 0.88),
    ):
        scores = columns(np.random.default_rng(7), rate)
        run, metrics = evaluate(place, key, f"{name}@{id_}", scores, seeded=seeded)
        runs.append(run)
        against = {"p": 3.2e-12, "paired" if seeded else "unpaired": {"won": 80, "lost": 12}}
        table.append({"policy": kind, "checkpoint": f"{name}@{id_}", **metrics, **(against if table else {})})
    finish(place, "nightly", "77", content={"runs": runs, "table": table, "night": 0}, hour=5,
           result={"metrics": table[-1], "outputs": {"checkpoint": f"{name}@{c}"}})  # fmt: skip
    return place


# -- reading a page ---------------------------------------------------------------------------------------------------


@dataclass
class Page(html.parser.HTMLParser):
    """A page as a parser without a browser sees it: its tags with their attributes, and its text."""

    source: str
    tags: list = field(default_factory=list)
    words: list = field(default_factory=list)

    def __post_init__(self):
        super().__init__()
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    def labels(self):
        return [attrs["aria-label"] for tag, attrs in self.tags if tag == "svg" and "aria-label" in attrs]


def read(place):
    path = report.build(place)
    assert path == place.root / "report" / "index.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert "This part failed" not in page.text
    return page


def test_a_nightly_is_told_with_the_answer_first(tmp_path):
    page = read(whole(tmp_path))
    title = "policy/NoSuchTask-v0: 0.54 → 0.88 (n = 120, p = 9e-13), promoted"  # won 40, lost 0: p = 2**-40
    assert f"<title>{title}</title>" in page.source
    for phrase in (
        "pretrained", "retrained", "best-of-N", "n = 120", "p = 3e-12 against pretrained", "success within 20",
        "quarantined", "episode 3: action is [T, 6]", "promoted", "won 80, lost 12",
        "nightly/77", "corpus@1", "a.hdf5", "retrain/33cc", "pretrain/22bb", "ingest/11aa", "Demonstrate next", "corpus/",
    ):  # fmt: skip
        assert phrase.lower() in page.text.lower(), phrase
    labels = " | ".join(page.labels())
    for phrase in (
        "round 3:",
        "3000 updates: 0.54",
        "20 human:vr",
        "obs[2]",
        "spread: mean from 0.6 to 0.75",
        "error: mean from 0.1 to 0.025",
    ):
        assert phrase in labels, phrase
    assert page.text.index("0.54 → 0.88") < page.text.index("Learning")


def test_the_same_store_makes_the_same_page(tmp_path):
    place = whole(tmp_path)
    first = report.build(place).read_bytes()
    assert report.build(place).read_bytes() == first
    assert len(first) < 4_000_000


def test_a_refused_candidate_is_told_with_the_reason_and_what_stays(tmp_path):
    page = read(whole(tmp_path, accept=False))
    assert "refused" in re.search("<title>(.*?)</title>", page.source)[1]
    assert page.text.index("won 80, lost 12") < page.text.index("the first of its name"), (
        "newest first, in one second too"
    )
    assert "In production is" in page.text and f"policy/NoSuchTask-v0@{'a' * 12}" in page.text


def test_a_decision_by_hand_after_the_nightly_is_told(tmp_path):
    place, name = whole(tmp_path), "policy/NoSuchTask-v0"
    place.names.rollback(name, "it shook the table")
    page = read(place)
    assert "<title>policy/NoSuchTask-v0: 0.54 (n = 120), rolled back</title>" in page.source
    assert "it shook the table" in page.text
    place.names.make(name, "d" * 64, "x", "pretrain/9")
    place.names.promote(name, "d" * 12, "", "forced: try it")
    assert f"In production is {name}@{'d' * 12} , which is not scored here" in read(place).text


def test_it_needs_nothing_from_outside_and_runs_nothing(tmp_path):
    page = read(whole(tmp_path))
    assert {t for t, _ in page.tags}.isdisjoint({"script", "iframe", "object", "embed", "base", "form"})
    for tag, attrs in page.tags:
        assert not [a for a in attrs if a.startswith("on")], (tag, attrs)
        for name in ("src", "srcset", "href", "xlink:href", "data"):
            value = attrs.get(name, "#")
            assert value.startswith(("data:", "#")), (tag, name, value)
    assert "default-src 'none'" in page.source
    assert not re.findall(r"url\((?!#)", page.source)
    assert not re.findall(r"#[0-9a-f]{6}", "".join(re.findall(r"<svg.*?</svg>", page.source, re.S))), (
        "a colour that ignores dark"
    )
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids)), "ids of different charts collide"


def test_hostile_text_is_shown_and_never_interpreted(tmp_path):
    text = HOSTILE
    place = Store(tmp_path)
    clean = text.replace("\ud800", "").replace("\x1b", "")  # what a corpus may hold
    rng = np.random.default_rng(0)
    ingest(place, rng, clean)
    pretrain(place, text=clean)
    retrain(place, rng, text=clean)
    place.names.promote("policy/NoSuchTask-v0", "c" * 12, "promote/1", "x" + text)
    evaluate(place, "e1", "policy/NoSuchTask-v0@" + "c" * 12, columns(rng, 0.5))
    finish(place, "ingest", "zz", content={"quarantined": [{"file": text, "episode": text, "reason": text}]})
    table = [{"policy": text, "checkpoint": f"policy/NoSuchTask-v0@{'c' * 12}", "success": 0.5, "n": 10, "ci95": [0.2, 0.8], f"a{text}": {"success": 0.1, "n": 3, "ci95": [0, 1]}}]  # fmt: skip
    finish(place, "nightly", "88", content={"runs": [], "table": table}, result={"seconds": 1})
    page = read(place)
    assert {t for t, _ in page.tags}.isdisjoint({"script"})
    assert not [attrs for _, attrs in page.tags if any(a.startswith("on") for a in attrs)]
    assert all(attrs["src"].startswith("data:") for tag, attrs in page.tags if tag == "img")
    assert page.text.count("<script>hacked=1</script>") >= 5
    assert "\x1b" not in page.source


PARTS = {
    "nothing": (),
    "no folder": None,
    "recordings only": (ingest,),
    "pretrained": (ingest, lambda place, rng: pretrain(place)),
    "rounds": (ingest, lambda place, rng: pretrain(place), retrain),
    "a policy without its corpus": (lambda place, rng: pretrain(place),),
}


@pytest.mark.parametrize("parts", PARTS)
def test_a_partial_store_says_what_is_missing(tmp_path, parts):
    place, rng = Store(tmp_path / "store"), np.random.default_rng(1)
    for part in PARTS[parts] or ():
        part(place, rng)
    page = read(place)
    assert "No policy was scored on report seeds yet." in page.text
    assert "Nothing was promoted or refused yet." in page.text
    assert ("There are no episodes yet." in page.text) == (ingest not in (PARTS[parts] or ()))
    assert ("No rounds yet." in page.text) == (retrain not in (PARTS[parts] or ()))


def test_runs_with_holes_are_told_as_far_as_they_go(tmp_path):
    place = Store(tmp_path)
    name = "policy/NoSuchTask-v0"
    pretrain(place)
    history = [{"round": 0, "episodes": 5, "success": None, "from_demos": 0.5, "window_low": 0.85, "steps": 10}]
    finish(place, "retrain", "1", content={"history": history})
    finish(
        place,
        "retrain",
        "2",
        content={"history": [{"round": 0, "episodes": 10, "success": 0.4, "from_demos": None, "steps": 30}]},
    )
    finish(place, "evaluate", "3", inputs={"checkpoint": {"id": "x", "ref": f"{name}@{'a' * 12}"}})  # no npz
    place.names.promote(name, "a" * 12, "promote/pruned", "forced: by hand")
    page = read(place)
    assert "2 rounds, 40 environment steps" in page.text
    assert any("round 1: 0.40" in label for label in page.labels())
    assert "No policy was scored" in page.text


def test_a_part_that_fails_is_named_and_the_others_are_there(tmp_path):
    place = whole(tmp_path)
    (tmp_path / "runs" / "retrain" / "33cc" / "_DONE.json").write_text(
        (tmp_path / "runs" / "retrain" / "33cc" / "_DONE.json")
        .read_text()
        .replace('"success":', '"success":"<b>x",  "y":')
    )
    page = Page(report.build(place).read_text())
    assert "0.54 → 0.88" in page.text and "Gate decisions" in page.text


# -- parts ------------------------------------------------------------------------------------------------------------


def test_starts_are_found_where_the_failures_really_are():
    scores = columns(np.random.default_rng(3), 0.6, n=300)
    found = starts.where(scores, {})
    assert "obs[2]" in (found["x"].name, found["y"].name)
    assert found["p"] < starts.ALPHA
    axis = 1 if found["x"].name == "obs[2]" else 0
    assert found["worst"][axis] == 2  # the largest third
    assert starts.advice(found).startswith("Demonstrate next: ")
    assert found["n"].sum() == 300 and found["k"].sum() == 180


def test_failures_that_follow_no_pattern_are_not_made_into_one():
    scores = columns(np.random.default_rng(4), 0.6, n=300)
    scores["success"] = np.random.default_rng(5).random(300) < 0.6
    found = starts.where(scores, {})
    assert found["p"] > starts.ALPHA
    assert not starts.advice(found).startswith("Demonstrate")
    scores["success"] = np.ones(300, bool)
    assert "too few failures" in starts.where(scores, {})["why"]


def test_information_by_hand():
    # cell 0 always succeeds, cell 1 never, half the episodes each: one bit, log 2 nats; independent: nothing
    cell = np.array([0, 0, 1, 1])
    outcomes = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]], float)
    np.testing.assert_allclose(starts.information(cell, outcomes), [np.log(2), 0, 0], atol=1e-12)


def test_tasks_of_sim_name_their_initial_conditions():
    scores = columns(np.random.default_rng(3), 0.6, n=12)
    values, *_ = starts.conditions(scores, {"name": "lift"})
    assert values["cube_x"][5] == flywheel_sim.load("lift").init(200_000_005)["cube_x"]


def test_lineage_reaches_the_files_and_draws_every_edge_once(tmp_path):
    place = whole(tmp_path)
    nodes, parents = ancestry.graph(place, place.runs(), f"policy/NoSuchTask-v0@{'c' * 12}")
    order = [n["node"] for n in nodes]
    kinds = [n["kind"] for n in nodes]
    assert kinds[0] == "checkpoint" and kinds[-1] == "file" and len(set(order)) == len(order)
    for node, made_from in parents.items():
        for parent in made_from:
            assert order.index(node) < order.index(parent)
    rows, lanes = rails.rails(nodes, parents)
    out = sum(1 for lane, lines in rows for a, y0, b, y1 in lines if y0 == 0.5 and a == lane)
    assert out == sum(len(set(p)) for p in parents.values()) and lanes <= 3
    for (_, above), (_, below) in itertools.pairwise(rows):  # what leaves at the bottom enters at the next one's top
        assert {b for _, _, b, y1 in above if y1 == 1.0} == {a for a, y0, _, _ in below if y0 == 0.0}


def test_numbers_for_people():
    assert [words.p_value(p) for p in (3.2e-12, 0.0004, 0.04, 0.4, None)] == [
        "3e-12",
        "0.0004",
        "0.04",
        "0.4",
        "–",
    ]
    assert [words.size(n) for n in (0, 999, 1500, 123_456_789)] == ["0 B", "999 B", "1.5 kB", "123 MB"]
    assert words.clean("<a\x00>" + "x" * 900) == "<a\N{REPLACEMENT CHARACTER}>" + "x" * 595 + "…"


# -- clips ------------------------------------------------------------------------------------------------------------


def moving_bar(count):
    frames = np.zeros((count, 240, 320, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[:, 10 * i : 10 * i + 20] = 255
    return list(frames)


def test_a_clip_is_an_animation_within_its_size():
    from io import BytesIO

    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (30, 240, 320, 3), np.uint8)  # cannot be compressed
    for frames, count in ((list(noise), None), (moving_bar(30), 30)):
        moving, still = clips.encode(frames, 10.0)
        data = base64.b64decode(moving.removeprefix("data:image/webp;base64,"))
        image = Image.open(BytesIO(data))
        assert image.is_animated and image.size == (320, 240) and len(data) <= clips.BYTES
        assert count is None or image.n_frames == count
        assert still.startswith("data:image/webp;base64,")


def test_clips_show_a_typical_success_and_a_failure_from_the_worst_starts():
    scores = columns(np.random.default_rng(0), 0.5, n=20)
    worst = np.zeros(20, bool)
    worst[np.flatnonzero(~scores["success"])[-1]] = True
    chosen = clips.choose(scores, worst)
    assert chosen["failure"][0] == scores["seed"][worst][0]
    won = dict(zip(scores["seed"].tolist(), scores["success"].tolist(), strict=True))
    assert all(won[s] for s in chosen["success"]) and not any(won[s] for s in chosen["failure"])
    assert clips.choose({**scores, "success": np.zeros(20, bool)})["success"] == []


def test_a_real_episode_is_filmed_or_the_page_says_why_not(tmp_path):
    import torch

    from flywheel import env as envs
    from flywheel.env import scoring
    from flywheel.policy import base

    torch.manual_seed(0)
    place, config = Store(tmp_path), {"task": {"name": "lift"}}
    env = envs.make(config["task"], 2)
    policy = base.build({"kind": "flow", "obs_dim": env.obs_dim, "action_dim": env.action_dim, "width": 8, "depth": 1})
    base.save(policy, tmp_path / "x")
    place.names.make("policy/lift", store.sha256_file(tmp_path / "x"), "x", "pretrain/1")
    scores = scoring.score(policy.eval(), env, [5, 6], what="test", stop_at_success=True)
    env.close()
    filmed = clips.film(place, "policy/lift", config["task"], scores, clips.choose(scores))
    if "OpenGL" in filmed["failure"]:
        assert filmed["failure"].startswith("No clip: ")
    else:
        assert filmed["success"] == "There was no success to show."
        assert filmed["failure"][0].startswith("data:image/webp;base64,") and filmed["failure"].seed == 5


def test_without_opengl_the_page_says_so(tmp_path):
    script = (
        "import sys; import numpy as np; from flywheel.runs.run import Store; from flywheel.report import clips\n"
        "columns = {'seed': np.array([5])}\n"
        "filmed = clips.film(Store(sys.argv[1]), 'policy/lift', {'name': 'lift'}, columns, {'success': [5], 'failure': []})\n"
        "print(filmed['success'])"
    )
    env = os.environ | {"MUJOCO_GL": "disable"}
    out = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout.startswith("No clip: ") and "OpenGL" in out.stdout


# -- a real browser ---------------------------------------------------------------------------------------------------


class Browser:
    """Headless Chromium over its pipe (messages of JSON that end in a zero byte): no port, no package."""

    FLAGS = (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe",
    )  # fmt: skip
    START = "import os, sys; r, w = map(int, sys.argv[1:3]); os.dup2(r, 63); os.dup2(w, 62); os.dup2(63, 3); os.dup2(62, 4); os.execvp(sys.argv[3], sys.argv[3:])"
    PATIENCE = 120  # seconds without a word before a test fails instead of hanging

    def __init__(self, program, profile):
        read, self.write = os.pipe()
        self.read, write = os.pipe()
        command = [
            sys.executable,
            "-c",
            self.START,
            str(read),
            str(write),
            program,
            *self.FLAGS,
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        self.process = subprocess.Popen(
            command, pass_fds=(read, write), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        os.close(read)
        os.close(write)
        self.buffer, self.number, self.events = b"", 0, []
        pages = [t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self.session = self("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def message(self):
        while b"\0" not in self.buffer:
            if not select.select([self.read], [], [], self.PATIENCE)[0]:
                raise TimeoutError("the browser says nothing")
            data = os.read(self.read, 1 << 20)
            if not data:
                raise ConnectionError(f"the browser ended ({self.process.poll()})")
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(line)

    def __call__(self, method, **params):
        self.number += 1
        call = {"id": self.number, "method": method, "params": params}
        if hasattr(self, "session"):
            call["sessionId"] = self.session
        os.write(self.write, json.dumps(call).encode() + b"\0")
        while True:
            got = self.message()
            if got.get("id") == self.number:
                assert "error" not in got, got
                return got["result"]
            self.events.append(got)

    def open(self, path, width, scheme="light"):
        """Load a page at a width and wait until it is there; what it complained of or fetched is in `events`."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self("Page.navigate", url=path.as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self.message())

    def evaluate(self, script):
        got = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def complaints(self):
        """Errors on the console, exceptions, and what was asked of a network."""
        found = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown" or (
                method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert")
            ):
                found.append(params)
            elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
            elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(("file:", "data:")):
                found.append(params["request"]["url"])
        return found

    def close(self):
        os.close(self.write)
        os.close(self.read)
        self.process.terminate()
        self.process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    program = next((p for p in map(shutil.which, names) if p), None)
    if program is None:
        why = f"no browser: none of {', '.join(names)} is on the path (Debian: apt-get install chromium)"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    browser = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


MEASURE = """(() => {
  const wide = document.documentElement.clientWidth, box = e => e.getBoundingClientRect();
  const shown = [...document.querySelectorAll('body *')].filter(e => box(e).width > 0);
  const own = e => [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim());
  const charts = [...document.querySelectorAll('figure svg')].map(svg => {
    const scale = box(svg).width / svg.viewBox.baseVal.width;
    const texts = [...svg.querySelectorAll('text')].map(t => ({
      text: t.textContent, size: parseFloat(getComputedStyle(t).fontSize) * scale, box: box(t).toJSON()}));
    const marks = [...svg.querySelectorAll('path, use')].map(box).filter(b => b.width + b.height > 1);
    return {label: svg.getAttribute('aria-label'), box: box(svg).toJSON(), marks: marks.length, texts};
  });
  const colour = e => getComputedStyle(e).color.match(/[\\d.]+/g).map(Number);
  const light = c => { const [r, g, b] = c.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b };
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor.match(/[\\d.]+/g).map(Number);
    if (c.length == 3 || c[3] > 0) return c.slice(0, 3) } return [255, 255, 255] };
  const contrast = e => { let paint = e instanceof SVGElement ? getComputedStyle(e).fill.match(/[\\d.]+/g).map(Number) : colour(e);
    const [a, b] = [light(paint.slice(0, 3)), light(ground(e))].sort((x, y) => y - x); return (a + .05) / (b + .05) };
  const texts = shown.filter(e => own(e) && !e.closest('svg'));
  return {wide, scroll: document.documentElement.scrollWidth, height: document.documentElement.scrollHeight, charts,
    out: shown.filter(e => box(e).right > wide + 1 || box(e).left < -1).filter(e => !e.closest('.scroll'))
      .map(e => e.tagName + '.' + e.className + ' ' + e.textContent.slice(0, 40)),
    small: texts.filter(e => parseFloat(getComputedStyle(e).fontSize) < 12).map(e => e.textContent.slice(0, 40)),
    faint: [...texts, ...shown.filter(e => e.tagName == 'text')].map(e => [contrast(e), e.textContent.slice(0, 40)]).filter(c => c[0] < 4.5),
    cards: [...document.querySelectorAll('#learning .card')].map(e => box(e).toJSON()),
    images: [...document.images].map(i => [i.naturalWidth, i.alt]),
    hacked: typeof hacked};
})()"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_every_chart_and_all_text_is_readable(browser, tmp_path, width, scheme):
    browser.open(report.build(whole(tmp_path)), width, scheme)
    assert browser.complaints() == []
    seen = browser.evaluate(MEASURE)
    assert seen["wide"] == width and seen["scroll"] <= width, "the page scrolls sideways"
    assert seen["out"] == [] and seen["small"] == [] and seen["faint"] == []
    assert len(seen["charts"]) >= 8
    for chart in seen["charts"]:
        assert chart["box"]["width"] > 280 and chart["box"]["height"] > 120, chart["label"]
        assert chart["marks"] >= 5 and len(chart["texts"]) >= 3, chart["label"]
        for text in chart["texts"]:
            assert text["size"] >= 10, (chart["label"], text)
            assert text["box"]["left"] >= 0 and text["box"]["right"] <= chart["box"]["right"] + 16, (
                chart["label"],
                text,
            )
        for i, a in enumerate(chart["texts"]):
            for b in chart["texts"][i + 1 :]:
                assert not overlap(a["box"], b["box"]), (chart["label"], a["text"], b["text"])
    tops, lefts = ({round(card[side]) for card in seen["cards"][:3]} for side in ("top", "left"))
    assert (len(tops), len(lefts)) == ((1, 3) if width == 1280 else (3, 1))


def overlap(a, b, slack=2.0):
    across = min(a["right"], b["right"]) - max(a["left"], b["left"])
    down = min(a["bottom"], b["bottom"]) - max(a["top"], b["top"])
    return across > slack and down > slack


def test_a_browser_runs_nothing_of_hostile_text(browser, tmp_path):
    test_hostile_text_is_shown_and_never_interpreted(tmp_path)
    for width in (1280, 390):
        browser.open(tmp_path / "report" / "index.html", width)
        seen = browser.evaluate(MEASURE)
        assert browser.complaints() == [] and seen["hacked"] == "undefined"
        assert seen["scroll"] <= width and seen["out"] == []


def test_a_browser_shows_clips_and_an_empty_store(browser, tmp_path):
    moving, still = clips.encode(moving_bar(10), 10.0)
    shown = {"success": clips.Clip(moving, still, 5), "failure": clips.Clip(still, still, 6)}
    values = {"lead": "", "checkpoint": "policy/x@1", "episodes": 2, "starts": None, "clips": shown, "no_clips": []}
    section = page.fill("failures", id="failures", heading="Failures", **values)
    file = tmp_path / "clip.html"
    file.write_text(page.fill("page", title="", headline="", sections=[section], finished=None, root=tmp_path))
    browser.open(file, 390)
    images = [[320, f"{kind}: the episode of seed {clip.seed}, filmed"] for kind, clip in shown.items()]
    assert browser.evaluate(MEASURE)["images"] == images and browser.complaints() == []
    browser.open(report.build(Store(tmp_path / "empty")), 390)
    seen = browser.evaluate(MEASURE)
    assert browser.complaints() == [] and seen["out"] == [] and seen["scroll"] <= 390


def test_a_success_that_does_not_last_is_told_in_the_headline(tmp_path):
    """findings C8: 0.88 at any step beside 0.10 at the last one is no success to be proud of."""
    place, rng = Store(tmp_path), np.random.default_rng(0)
    ingest(place, rng)
    pretrain(place)
    scores = columns(rng, 0.9)
    name = f"policy/NoSuchTask-v0@{'a' * 12}"
    evaluate(place, "e1", name, {**scores, "success_at_end": np.zeros(len(scores["success"]), bool)})
    assert "at the last step" in read(place).source.split("</h1>")[0]


def test_where_failures_start_has_the_names_of_what_is_observed():
    """findings E1: desired_goal[0], not obs[3]."""
    rng = np.random.default_rng(0)
    scores = {
        "seed": np.arange(40),
        "success": rng.random(40) < 0.5,
        "obs0": np.c_[rng.normal(size=(40, 2)), np.ones(40)],
    }
    names = ["desired_goal[0]", "desired_goal[1]", "observation"]
    found = starts.where(scores, {"name": "gym"}, names)
    assert {found["x"].name, found["y"].name} == {"desired_goal[0]", "desired_goal[1]"}
    assert "desired_goal[0] from" in starts.advice(found)


def test_the_curve_is_that_of_the_base(tmp_path):
    """findings F1: of several classes that were pretrained the page shows how the one was trained that all is
    compared with."""

    def made(ref):
        return {"result": {"outputs": {"checkpoint": ref}}}

    runs = [made("policy/x@1"), made("policy/x@2"), made("policy/x@3")]
    assert sections.imitation([{"checkpoint": "policy/x@2"}], runs) is runs[1]
    assert sections.imitation([], runs) is runs[2]
    assert sections.imitation([], []) is None


@pytest.mark.parametrize("recorded", [True, False])
def test_where_seeds_decide_nothing_the_page_says_which_test_was_done(tmp_path, recorded):
    """The records say `unpaired` and `seeded`; the page once spoke of the paired test all the same."""
    place = whole(tmp_path, seeded=False)
    if not recorded:  # no nightly: the page tests by itself
        shutil.rmtree(tmp_path / "runs" / "nightly")
    known = facts.look(place)
    a, c = (f"policy/NoSuchTask-v0@{digit * 12}" for digit in "ac")
    p = stats.fisher(*(known.outcomes[ref]["columns"]["success"] for ref in (c, a)))["p"]
    assert results.better(c, a, known.outcomes) == (p, "unpaired")
    shown = read(place)
    assert f"(n = 120, unpaired p = {words.p_value(p)})" in re.search("<title>(.*?)</title>", shown.source)[1]
    assert "Fisher's exact test of unpaired episodes, for the environment does not honour seeds" in shown.text
    assert "exact paired test" not in shown.text and "on the same report seeds" not in shown.text
    assert "the exact paired test" in read(whole(tmp_path / "seeded")).text


def test_an_older_record_of_a_score_says_its_test(tmp_path):
    """Nightlies recorded `p` before they recorded `paired` or `unpaired`: the scores' records say whether seeds
    decide."""
    scored = {"x@1": {"seeded": False}, "x@2": {"seeded": True}}
    night = {"table": [{"checkpoint": ref, "p": 0.1} for ref in (*scored, "x@3")] + [{"checkpoint": "x@4"}]}
    assert [row["test"] for row in results.table(night, scored)] == ["unpaired", "paired", "paired", None]


def test_faults_of_the_environment_are_told_beside_the_score(tmp_path):
    place = whole(tmp_path)
    path = tmp_path / "runs" / "nightly" / "77" / "_DONE.json"
    done = json.loads(path.read_text())
    done["content"]["table"][0]["faults"] = ["seed 7: obs[2] is nan", "seed 9: it hung"]
    path.write_text(json.dumps(done))
    assert "2 failed by a fault of the environment, first seed 7: obs[2] is nan" in read(place).text


@pytest.mark.parametrize("name", flywheel_sim.tasks())
def test_tasks_of_sim_say_the_units_of_their_starts(name):
    task = flywheel_sim.load(name)
    assert list(task.start_units) == list(task.init(0))
    scores = columns(np.random.default_rng(0), 0.5, n=40)
    by_id = starts.where(scores, {"name": "gym", "id": flywheel_sim.gym_id(name)})
    assert by_id["x"].name in task.start_units
    assert re.fullmatch(rf"{by_id['x'].name} from \S+ to \S+ (m|rad)", by_id["x"].range(0))
    assert by_id["x"].label == f"{by_id['x'].name} ({by_id['x'].unit})"


def script(field):
    return f"<script>hacked='{field}'</script>"


FIELDS = (
    "policy", "rate", "fault", "class", "tested", "reason", "decided by", "quarantined file", "quarantined episode",
    "quarantined reason", "loss", "origin", "file", "status", "stage", "key", "folder", "observed", "task",
    "of one origin",
)  # fmt: skip


def hostile(root):
    """A store in which every text that comes from outside is a script that names its field."""
    name, rng = "policy/NoSuchTask-v0", np.random.default_rng(0)
    place, ref = Store(root), f"{name}@{'a' * 12}"
    task = {"task": {**TASK, "id": script("task")}}
    demos = [episode(rng, script("origin"), True, file=script("file")) for _ in range(3)]
    place.corpus(create=True).append(demos, message=script("message"), time="2025-11-22T01:00:00Z")
    files = {"source": {"id": "f0", "ref": script("source"), "files": [script("file")]}}
    kept_out = {key: script(f"quarantined {key}") for key in ("file", "episode", "reason")}
    finish(place, "ingest", "1", inputs=files, content={"quarantined": [kept_out]}, config=task)
    corpus_of = {**corpus_input(), "origins": {script("of one origin"): 3}, "files": [script("file")]}
    loss = f"policy.{script('loss')}"
    finish(
        place, "pretrain", "2", inputs={"corpus": corpus_of}, content={"curve": [{"updates": 1000, loss: 0.5}]},
        result={"outputs": {"checkpoint": ref}}, config=task,
    )  # fmt: skip
    place.names.make(name, "a" * 64, "x", "pretrain/2", kind=script("kind"), updates=3000)
    place.names.promote(name, "a" * 12, script("decided by"), script("reason"))
    names = [f"{script('observed')}{i}" for i in range(4)]
    done = {"inputs": {"checkpoint": {"id": "x", "ref": ref}}, "content": {"obs_names": names}, "config": task}
    run = finish(place, "evaluate", "3", **done)
    np.savez(place.root / "runs" / run / "out" / "checkpoint.npz", **columns(rng, 0.5))
    row = {
        "policy": script("policy"),
        "checkpoint": ref,
        "success": 0.5,
        "n": 120,
        "ci95": [0.4, 0.6],
        "p": 0.1,
        "success_at_end": 0.5,
    }
    row |= {script("rate"): {"success": 0.1, "n": 3, "ci95": [0, 1]}, "faults": [script("fault")]}
    classes = [
        {"policy": script("class"), "checkpoint": script("tested"), "success": 0.5, "n": 3, "chosen": i} for i in (0, 1)
    ]
    content = {"runs": [run, "nightly/4"], "table": [row], "tournament": classes}
    finish(place, "nightly", "4", content=content, result={"status": script("status")}, config=task)
    path = place.root / "runs" / "nightly" / "4" / "_DONE.json"
    odd = json.loads(path.read_text()) | {
        "stage": script("stage"),
        "key": script("key"),
        "finished": script("finished"),
        "order": 9,
    }
    odd["content"] = {}
    store.write_json(store.make_dirs(place.root / "runs" / "odd" / "5") / "_DONE.json", odd)
    content["runs"].append(f"{script('stage')}/{script('key')}")
    store.write_json(path, json.loads(path.read_text()) | {"content": content})
    (store.make_dirs(place.root / script("folder").replace("/", "\\")) / "file").write_text("x")
    return place


def test_every_text_from_outside_is_escaped(tmp_path):
    shown = read(hostile(tmp_path / "<img src=x onerror=hacked=1>"))
    assert {tag for tag, _ in shown.tags}.isdisjoint({"script"}) and "onerror=hacked=1>" in shown.text
    assert all(not name.startswith("on") for _, attrs in shown.tags for name in attrs)
    said = shown.text + " ".join(value or "" for _, attrs in shown.tags for value in attrs.values())
    assert [field for field in FIELDS if f"<script>hacked='{field}'" not in said] == []
    assert "As of <script>hacked='" in shown.text
    assert "<script" not in shown.source


def test_what_a_failing_section_says_is_escaped():
    broken = page.section("work", "Work", None)
    assert "This part failed: AttributeError(" in broken
    assert "&lt;script&gt;" in page.fill("section", id="work", heading="Work", error=script("error"))


def random_policy(place, task, seed):
    """A checkpoint with random weights; its NAME@ID."""
    import torch

    from flywheel import env
    from flywheel.policy import base

    torch.manual_seed(seed)
    batch = env.make(task, 1)
    shape = {"obs_dim": batch.obs_dim, "action_dim": batch.action_dim}
    batch.close()
    file = place.root / f"weights{seed}"
    base.save(base.build({"kind": "flow", "width": 8, "depth": 1, **shape}), file)
    return f"policy/x@{place.names.make('policy/x', store.sha256_file(file), file.name, 'pretrain/1')['id']}"


def scored(root, id, **kwargs):
    """Score two random policies of an environment: (Store, the outcomes of one, of the other)."""
    from flywheel.cli import app

    place = Store(root)
    task = {"name": "gym", "id": id, "kwargs": kwargs}
    a, b = (random_policy(place, task, seed) for seed in (0, 1))
    options = [f"task.kwargs={{{key}: {str(value).lower()}}}" for key, value in kwargs.items()]
    options += [f"store={root}", "task=gym", f"task.id={id}", "episodes=16", "num_envs=8", "threads=1"]
    assert app.main(["evaluate", f"checkpoint={a}", f"against={b}", *options]) == 0
    place.names.promote("policy/x", a.partition("@")[2], "", "by hand")
    outcomes = facts.look(place).outcomes
    return place, outcomes[a], outcomes[b]


def test_where_failures_start_has_the_names_that_evaluate_recorded(tmp_path):
    _, score, _ = scored(tmp_path, "odd:Camera-v0", flat=True)
    assert score["names"] == ["agent_pos[0]", "agent_pos[1]", "goal[0]", "goal[1]"] and score["seeded"]
    far = {**score["columns"], "success": score["columns"]["obs0"][:, 3] > 0}
    assert "goal[1] from" in starts.advice(starts.where(far, score["task"], score["names"]))


def test_a_real_environment_that_ignores_seeds_is_told_so(tmp_path):
    place, *scores = scored(tmp_path, "odd:Seedless-v0")
    assert [score["seeded"] for score in scores] == [False, False]
    shown = read(place)
    assert "unpaired p = " in shown.source and "exact paired test" not in shown.text
