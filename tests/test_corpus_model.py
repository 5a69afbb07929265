"""Random operations on the corpus against a model of plain lists and dicts, with checkpoints after every or no
version."""

import shutil
import tempfile
from pathlib import Path

import pytest
from camera_cases import with_cameras
from corpus_cases import episode, same
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flywheel.corpus import Corpus, CorpusError, state
from flywheel.corpus.maintenance import compact, fsck, gc

FILMS = tempfile.TemporaryDirectory()
POOL = [*with_cameras(Path(FILMS.name), count=3)[0], *(episode(seed, task="push") for seed in range(3, 6))]
PICK = st.lists(st.sampled_from(range(6)), max_size=4)


class Model(RuleBasedStateMachine):
    """`versions[n]` is the list of living pool numbers at version n; `dead` the tombstones at head."""

    @initialize(base=st.sampled_from([1, 2, 32]))
    def begin(self, base):
        state.BASE = base
        self.folder = tempfile.TemporaryDirectory()
        self.corpus = Corpus(self.folder.name, create=True)
        self.versions = [[]]
        self.dead = {}
        self.tags = {}

    def teardown(self):
        state.BASE = 32
        assert fsck(self.corpus) == []
        self.folder.cleanup()

    @rule(picked=PICK, restore=st.booleans())
    def append(self, picked, restore):
        live, new, twice, refused = self.versions[-1], [], [], []
        for number in picked:
            if number in live or number in new:
                twice.append(POOL[number].hash)
            elif number in self.dead and not restore:
                refused.append((POOL[number].hash, self.dead[number]))
            else:
                new.append(number)
        for number in new:
            self.dead.pop(number, None)
        done = self.corpus.append([POOL[number] for number in picked], restore=restore)
        if new:
            self.versions.append(live + new)
        assert done.added == [POOL[number].hash for number in new]
        assert (done.duplicates, done.refused) == (twice, refused)
        assert done.version == len(self.versions) - 1

    @precondition(lambda self: self.versions[-1])
    @rule(data=st.data())
    def tombstone(self, data):
        gone = data.draw(st.lists(st.sampled_from(self.versions[-1]), min_size=1, max_size=2, unique=True))
        message = f"reason {len(self.versions)}"
        assert self.corpus.tombstone([POOL[number].hash[:12] for number in gone], message) == len(self.versions)
        self.versions.append([number for number in self.versions[-1] if number not in gone])
        self.dead |= dict.fromkeys(gone, message)

    @rule(name=st.sampled_from(["a", "b", "c"]), data=st.data())
    def tag(self, name, data):
        version = data.draw(st.integers(0, len(self.versions) - 1))
        if self.tags.setdefault(name, version) == version:
            self.corpus.tag(name, version)
        else:
            with pytest.raises(CorpusError, match="already"):
                self.corpus.tag(name, version)

    @rule()
    def compact(self):
        done = compact(self.corpus)
        if done.merged:
            self.versions.append(self.versions[-1])
        assert done.version == len(self.versions) - 1
        gc(self.corpus, grace=0, dry_run=False)

    @rule()
    def reopen(self):
        self.corpus = Corpus(self.folder.name)

    @rule()
    def lose_the_checkpoints(self):
        shutil.rmtree(f"{self.folder.name}/checkpoints", ignore_errors=True)

    @rule(data=st.data())
    def read(self, data):
        version = data.draw(st.sampled_from([n for n, live in enumerate(self.versions) if live] or [0]))
        for number in self.versions[version][:1]:
            same(self.corpus.at(version).read(POOL[number].hash), POOL[number])

    @invariant()
    def every_version_shows_what_it_showed(self):
        assert self.corpus.head == len(self.versions) - 1
        for number, live in enumerate(self.versions):
            assert sorted(self.corpus.at(number).hashes) == sorted(POOL[one].hash for one in live)
        assert self.corpus.tags() == self.tags


Model.TestCase.settings = settings(
    max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
TestModel = Model.TestCase
