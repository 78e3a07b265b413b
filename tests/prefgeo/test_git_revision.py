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
    source.write_text("1\n")
    assert runs.revision_of(source) is None  # no repository
    git(tmp_path, "init", "--quiet")
    (tmp_path / "other.py").write_text("1\n")
    git(tmp_path, "add", "other.py")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    git(tmp_path, "tag", "-a", "v1", "-m", "one")
    assert runs.revision_of(source) is None  # an installed copy inside somebody's repository
    git(tmp_path, "add", "source.py")
    git(tmp_path, "commit", "--quiet", "-m", "two")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert runs.revision_of(source) == head
    (tmp_path / "untracked").write_text("")
    assert runs.revision_of(source) == head
    source.write_text("2\n")
    assert runs.revision_of(source) == f"{head}+changes"
    monkeypatch.setenv("PATH", "")
    assert runs.revision_of(source) is None  # git is not installed


def test_a_commit_that_lands_while_a_process_runs_does_not_change_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.py"
    source.write_text("1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "source.py")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    monkeypatch.setattr(runs, "__file__", str(source))
    runs.git_revision.cache_clear()
    try:
        first = runs.git_revision()
        git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "two")
        assert runs.revision_of(source) == git(tmp_path, "rev-parse", "HEAD") != first
        assert runs.git_revision() == first
    finally:
        runs.git_revision.cache_clear()
