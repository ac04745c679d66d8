"""What a program says while it compiles."""

import contextlib
import io
import logging
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastmlp.kernels import notice

import fastmlp
from fastmlp.training import progress
from fastmlp.training.progress import reporter


def join_timers():
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join()


class TestNotice:
    @pytest.fixture(autouse=True)
    def _soon(self, monkeypatch):
        monkeypatch.setattr(notice, "SECONDS", 0.05)
        notice._log.cache_clear()
        yield
        notice._log.cache_clear()

    def test_a_long_wait_is_said_once(self, caplog):
        for _ in range(2):
            unsay = notice.soon("compiling")
            join_timers()
            unsay()
        assert [(r.name, r.getMessage()) for r in caplog.records] == [
            ("fastmlp", "fastmlp: compiling")
        ]

    def test_a_short_one_is_not(self, caplog, monkeypatch):
        monkeypatch.setattr(notice, "SECONDS", 60)
        notice.soon("compiling")()
        join_timers()
        assert caplog.records == []

    def test_a_bar_takes_the_place_of_the_logger(self, caplog):
        said = []
        with notice.said_by(said.append):
            notice.soon("compiling")
        join_timers()
        assert said == ["compiling"]
        assert caplog.records == []

    @pytest.mark.parametrize("stream", [None, "closed"])
    def test_without_a_place_to_say_it(self, stream, monkeypatch):
        if stream == "closed":
            stream = io.StringIO()
            stream.close()
        monkeypatch.setattr(sys, "stderr", stream)
        logger = logging.getLogger("fastmlp")
        monkeypatch.setattr(logger, "propagate", False)  # no handler but the last resort
        with contextlib.redirect_stdout(io.StringIO()):
            notice._log("compiling")

    @pytest.mark.parametrize("bar", ["first order", "least squares"])
    def test_the_bars_of_fit_say_it(self, bar, capsys):
        problem = SimpleNamespace(
            here=[0], states={"step": np.zeros(1, np.int64)}, n_steps=np.array([3])
        )
        shown = reporter(problem, True) if bar == "first order" else progress.reporter_of_runs(True)
        with shown:
            notice.soon("compiling")
            join_timers()
        assert "compiling" in capsys.readouterr().err

    @pytest.mark.parametrize("optimizer", [fastmlp.Adam(), fastmlp.LevenbergMarquardt()])
    @pytest.mark.parametrize("closed", [False, True])
    def test_fit_without_a_standard_error(self, closed, optimizer, monkeypatch):
        # a program without a console has none; a daemon may have closed it
        stream = io.StringIO()
        stream.close()
        monkeypatch.setattr(sys, "stderr", stream if closed else None)
        x = torch.linspace(-1, 1, 20)
        result = fastmlp.fit(fastmlp.SineSum(3), x, x.sin(), epochs=2, optimizer=optimizer)
        assert result.train_loss.isfinite().all()
