"""What holds in every test: shapes are checked, nothing reaches the network, caches and seeds are its own."""

import os
import random
import socket
import tempfile
from contextlib import contextmanager

if "FASTDIFFUSION_TEST_CACHE" not in os.environ:
    folder = tempfile.TemporaryDirectory(prefix="fastdiffusion-", ignore_cleanup_errors=True)  # gone when all is done
    os.environ["FASTDIFFUSION_TEST_CACHE"] = folder.name  # pytest-xdist's workers share it
os.environ["XDG_CACHE_HOME"] = os.environ["FASTDIFFUSION_TEST_CACHE"]
os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

install_import_hook("fastdiffusion", "typecheck.check")  # before the library is first imported

import numpy as np
import pytest
import torch

CI = os.environ.get("CI", "").lower() not in ("", "0", "false")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random numbers."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """A test that reaches for the network fails, even where the library would swallow the error."""

    def guarded(connect):
        def local_only(self, address):
            host = address[0] if isinstance(address, tuple) else "localhost"  # a path: a Unix socket
            if host not in ("localhost", "127.0.0.1", "::1"):
                pytest.fail(f"reached for the network: {address}")
            return connect(self, address)

        return local_only

    resolve = socket.getaddrinfo

    def resolve_local(host, *args, **kwargs):
        if host not in (None, "localhost", "127.0.0.1", "::1", "0.0.0.0"):
            pytest.fail(f"reached for the network: {host}")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", resolve_local)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """What every verb needs, small: see ``desk.laid_out``."""
    from desk import laid_out

    return laid_out(tmp_path_factory.mktemp("desk"))


@pytest.fixture
def cut(monkeypatch):
    """``with cut(step):`` ends what is trained in it after so many steps, as Ctrl-C would."""
    from fastdiffusion.training import trainer
    from fastdiffusion.training.callback import Callback

    class StopAt(Callback):
        def __init__(self, at):
            self.at = at

        def step(self, training, step):
            if step.step == self.at:
                training.stop()

    @contextmanager
    def at(step):
        usual = trainer.defaults
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "defaults", lambda training: [*usual(training), StopAt(step)])
            with pytest.raises(KeyboardInterrupt):
                yield

    return at


def _fail_skip(report, node):
    """In CI everything is installed: there a skip hides a missing step, unless it is for want of a GPU."""
    if CI and report.skipped and not hasattr(report, "wasxfail") and not node.get_closest_marker("gpu"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"Skipped, which CI forbids. {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    return _fail_skip((yield), item)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _fail_skip((yield), collector)
