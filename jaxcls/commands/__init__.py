"""The commands of `jaxcls`, one file each; `common` holds what they share."""
