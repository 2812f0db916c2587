"""`python -m jaxcls` is the `jaxcls` command."""

import sys

from jaxcls.cli import main

sys.exit(main())
