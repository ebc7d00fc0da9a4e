"""Progress: loops report, watchers draw, and without a watcher nothing happens."""

from mmrec_helpers.progress import Level, describe, duration, progress, share_done, watch


class Seen(list):
    """A bar that keeps what it is told."""

    closed = False

    def __call__(self, levels):
        self.append(levels)

    def close(self):
        self.closed = True


def test_loops_tell_the_watcher_where_they_are_the_outermost_first(monkeypatch):
    monkeypatch.setattr("mmrec_helpers.progress._EVERY_S", 0.0)
    seen = Seen()
    with watch(seen):
        for _ in progress(range(2), "models"):
            for _ in progress(iter("ab"), "steps", total=2):
                pass
    inner = [Level("steps", 0, 2), Level("steps", 1, 2)]
    models = [Level("models", 0, 2), Level("models", 1, 2)]
    assert seen == [(), *[(model, *rest) for model in models for rest in ([], inner[:1], inner[1:])]]


def test_a_loop_that_stops_early_leaves_nothing_behind(monkeypatch):
    seen = Seen()
    with watch(seen):
        for _ in progress(range(3), "first"):
            break
        list(progress([1], "second"))
    assert seen[-1] == (Level("second", 0, 1),)
    assert seen.closed


def test_watchers_are_told_at_most_so_often_and_only_inside_the_block():
    seen = Seen()
    assert list(progress(range(3), "unwatched")) == [0, 1, 2]
    with watch(seen):
        assert sum(progress(range(100_000), "fast")) == 4999950000
    list(progress(range(3), "unwatched"))
    assert 2 <= len(seen) < 20  # of 100,000 steps


def test_a_bar_says_what_runs_how_long_it_has_and_how_long_it_may():
    levels = [Level("timing 24 variants", 2, 9)]
    assert describe("steps", levels, 41.2, 95) == "steps: timing 24 variants 3/9 · 41 s of about 2 min"
    assert describe("steps", [], 0.2) == "steps · 0 s"
    assert [duration(s) for s in (8.4, 95, 5460)] == ["8 s", "2 min", "1.5 h"]


def test_the_share_done_is_by_time_where_that_is_known():
    assert share_done([Level("timing", 2, 4)], 10, 40) == 0.25
    assert share_done([Level("timing", 2, 4)], 100, 40) == 0.99
    assert share_done([Level("timing", 2, 4)], 10, None) == 0.5
    assert share_done([], 10, None) is None
