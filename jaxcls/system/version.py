"""The version of jaxcls."""

VERSION = "0.1.0"
