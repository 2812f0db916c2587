import subprocess
import sys
from pathlib import Path

import pytest

from jaxcls.system.huge_pages import MODES, environment_with_huge_pages, is_the_command

MADVISE = "always [madvise] never\n"


@pytest.mark.parametrize(
    ("given", "modes", "glibc", "expected"),
    [
        (None, MADVISE, "glibc 2.36", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.arena_max=1", MADVISE, "glibc 2.35", ":glibc.malloc.hugetlb=1"),
        (None, MADVISE, "glibc 2.34", None),
        (None, MADVISE, "", None),
        (None, MADVISE, "glibc 2.x", None),
        (None, "[always] madvise never\n", "glibc 2.36", None),
        (None, "always madvise [never]\n", "glibc 2.36", None),
        ("glibc.malloc.hugetlb=0", MADVISE, "glibc 2.36", None),  # the user has chosen
        ("glibc.malloc.hugetlb=1", MADVISE, "glibc 2.36", None),  # started again already
    ],
)
def test_when_a_program_starts_again(
    given: str | None, modes: str, glibc: str, expected: str | None
) -> None:
    environment = {"HOME": "/home/someone"}
    if given is not None:
        environment["GLIBC_TUNABLES"] = given
    found = environment_with_huge_pages(environment, modes=modes, glibc=glibc)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found["HOME"] == "/home/someone"
    without = {name: value for name, value in found.items() if name != "GLIBC_TUNABLES"}
    assert environment_with_huge_pages(without, modes=modes, glibc=glibc) is None  # not for ever
    assert found["GLIBC_TUNABLES"] in (expected, f"{given}{expected}")


def test_only_the_command_is_started_again(tmp_path: Path) -> None:
    (tmp_path / "jaxcls").mkdir()
    files = [tmp_path / "bin" / "jaxcls", tmp_path / "jaxcls" / "__main__.py", tmp_path / "mine.py"]
    (tmp_path / "bin").mkdir()
    for file in files:
        file.touch()
    assert [is_the_command(str(file)) for file in files] == [True, True, False]
    for program in ("-c", "-", "", "jaxcls", str(tmp_path / "jaxcls")):
        assert not is_the_command(program)


def test_a_program_from_a_pipe_is_not_lost() -> None:
    code = "import sys; sys.argv = ['jaxcls', 'trian']; from jaxcls.__main__ import run; run()"
    done = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True)
    assert done.returncode == 2
    assert "trian" in done.stderr


def test_the_command_has_huge_pages_and_its_arguments(tmp_path: Path) -> None:
    if not Path(MODES).exists() or "[madvise]" not in Path(MODES).read_text():
        pytest.skip("this system does not wait to be asked for huge pages")
    (tmp_path / "config.py").write_text(
        "import os, sys\n"
        "print(os.environ['GLIBC_TUNABLES'], sys.argv[1:], file=sys.stderr)\n"
        "raise SystemExit(3)\n"
    )
    command = [sys.executable, "-W", "error", "-m", "jaxcls", "compile", "config.py", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "glibc.malloc.hugetlb=1 ['compile', 'config.py', '--json']" in done.stderr
