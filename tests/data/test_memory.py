"""Free memory on systems that are not at hand, imitated."""

import ctypes
import os
import sys
from types import SimpleNamespace

import pytest

from jaxfed.data import memory

pytestmark = pytest.mark.quick

PAGE = 4096


@pytest.fixture
def pages(monkeypatch, tmp_path):
    """The system's numbers by name, with no container around."""
    numbers = {"SC_PAGE_SIZE": PAGE, "SC_PHYS_PAGES": 1000, "SC_AVPHYS_PAGES": 300}
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sysconf_names", dict.fromkeys(numbers), raising=False)
    monkeypatch.setattr(os, "sysconf", numbers.__getitem__, raising=False)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    return numbers


def test_linux_says_how_much_is_free(pages):
    assert memory.free() == 300 * PAGE


def test_on_macos_it_is_half_of_all_there_is(pages, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "sysconf_names", {"SC_PAGE_SIZE": 29, "SC_PHYS_PAGES": 200})
    assert memory.free() == 500 * PAGE


@pytest.mark.parametrize(
    ("limit", "free"), [("max", 300 * PAGE), (100_000, 60_000 + 5_000), (30_000, 1)]
)
def test_a_container_has_what_its_limit_leaves(pages, tmp_path, limit, free):
    """What it caches of files that it is done with does not count."""
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("40000\n")
    (tmp_path / "memory.stat").write_text("anon 30000\ninactive_file 5000\n")
    assert memory.free() == free


def test_windows_says_what_is_available(monkeypatch):
    def status(reference):
        found = reference._obj
        assert found.length == ctypes.sizeof(found) == 64
        found.available = 12345

    kernel = SimpleNamespace(GlobalMemoryStatusEx=status)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    assert memory.free() == 12345
