"""The experiment: its schema, how it is read and compared, and what a published training takes."""

from jaxcls.config.schema import *  # noqa: F403
