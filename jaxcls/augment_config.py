"""The former place of `jaxcls.config.augment`, for configs that import it."""

from jaxcls.config.augment import *  # noqa: F403
