"""`python -m jaxcls` is the `jaxcls` command."""

from jaxcls.cli import run

run()
