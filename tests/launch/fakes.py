"""Commands that record how they were called and answer as a test wants, first on PATH."""

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

# Answers come from the first rule whose pattern the call matches: the rule's next reply, and the
# last one for ever. What matches none succeeds silently.
FAKE = """#!/usr/bin/env bash
call="{name} $*"
printf '%s\\n' "$call" >> '{folder}/calls'
for rule in '{folder}'/rules/*; do
  [[ -d $rule ]] && [[ $call =~ $(<"$rule/pattern") ]] || continue
  count=$(<"$rule/count")
  [[ ! -d $rule/$((count + 1)) ]] || echo "$((count + 1))" > "$rule/count"
  . "$rule/$count/reply" "$@"
done
"""


class Reply(NamedTuple):
    """What a fake command does: runs `script` (its arguments are the call's), prints, and exits."""

    out: str = ""
    err: str = ""
    status: int = 0
    script: str = ":"


def words_of_remote_command(file: Path) -> Reply:
    """A fake gcloud that writes the words which its --command= gives bash there, a line each."""
    return Reply(
        script=f"""for word; do case $word in --command=*)
        bash() {{ printf '%s\\n' "$@" >'{file}'; }}; eval "${{word#--command=}}";; esac; done"""
    )


class Fakes:
    """Fake commands in `folder`/bin."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        (folder / "calls").touch()
        for name in names:
            file = self.bin / name
            file.write_text(FAKE.format(name=name, folder=folder))
            file.chmod(0o755)

    def on(self, pattern: str, *replies: Reply) -> None:
        """Calls that match the (extended) regular expression get these replies, in this order."""
        rules = self.folder / "rules"
        rules.mkdir(exist_ok=True)
        rule = rules / f"{len(list(rules.iterdir())):03}"
        rule.mkdir()
        (rule / "pattern").write_text(pattern)
        (rule / "count").write_text("0")
        for index, reply in enumerate(replies):
            place = rule / str(index)
            place.mkdir()
            (place / "out").write_text(reply.out)
            (place / "err").write_text(reply.err)
            (place / "reply").write_text(
                f"cat '{place}/out'\ncat '{place}/err' >&2\n{reply.script}\nexit {reply.status}\n"
            )

    def calls(self) -> list[str]:
        """All calls so far, with the launcher's scratch folder as SCRATCH."""
        text = (self.folder / "calls").read_text()
        return re.sub(r"/\S*/tmp\.\w+/", "SCRATCH/", text).splitlines()

    def run(
        self, *command: str, cwd: Path = ROOT, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a launcher with the fakes on PATH and without waiting between two tries."""
        environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "JAXCLS_POLL_SECONDS": "0.01",
            "JAXCLS_BACKOFF_SECONDS": "0",
            **variables,
        }
        return subprocess.run(
            ["bash", *command],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=20,
            stdin=subprocess.DEVNULL,
        )
