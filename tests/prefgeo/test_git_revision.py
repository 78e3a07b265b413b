"""What manifests and figures call their source: the commit, whether files differ from it, and nothing elsewhere."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from prefgeo import runs


def git(folder: Path, *words: str) -> str:
    settings = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *settings, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_tracked_file_has_the_commit_and_says_whether_files_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.py"
    monkeypatch.setattr(runs, "__file__", str(source))
    source.write_text("1\n")
    assert runs.git_revision() is None  # no repository
    git(tmp_path, "init", "--quiet")
    (tmp_path / "other.py").write_text("1\n")
    git(tmp_path, "add", "other.py")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    git(tmp_path, "tag", "-a", "v1", "-m", "one")
    assert runs.git_revision() is None  # an installed copy inside somebody's repository
    git(tmp_path, "add", "source.py")
    git(tmp_path, "commit", "--quiet", "-m", "two")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert runs.git_revision() == head
    (tmp_path / "untracked").write_text("")
    assert runs.git_revision() == head
    source.write_text("2\n")
    assert runs.git_revision() == f"{head}+changes"
    monkeypatch.setenv("PATH", "")
    assert runs.git_revision() is None  # git is not installed
