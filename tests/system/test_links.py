from pathlib import Path

import pytest

from jaxcls.system.links import has_wildcards, link_without_wildcards


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's temporary folder."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_every_process_gets_the_same_link(tmp_path: Path, temporary: Path) -> None:
    folder, other = tmp_path / "run[1]" / "a*", tmp_path / "run[1]" / "b*"
    link = link_without_wildcards(str(folder))
    assert link == link_without_wildcards(str(folder)) != link_without_wildcards(str(other))
    assert link.is_relative_to(temporary)
    assert link.parent.stat().st_mode & 0o777 == 0o700
    folder.mkdir(parents=True)
    (link / "new").touch()
    assert list(folder.iterdir()) == [folder / "new"]


def test_a_place_with_wildcards_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, usual = tmp_path / "temporary[1]", tmp_path / "usual"
    for folder in (temporary, usual):
        folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setenv("XDG_CACHE_HOME", str(usual))
    assert link_without_wildcards("run[1]").parent == usual / "jaxcls"
    usual.rename(tmp_path / "usual?")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "usual?"))
    with pytest.raises(OSError, match=r"no place for a link to run\[1\]; set TMPDIR"):
        link_without_wildcards("run[1]")


def test_names_with_wildcards() -> None:
    assert [name for name in ("run[1]", "a*", "b?", "c d", "é(1)") if has_wildcards(name)] == [
        "run[1]",
        "a*",
        "b?",
    ]
