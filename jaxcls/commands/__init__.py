"""The commands of `jaxcls`, one file each; `common` and `options` have what they share."""
