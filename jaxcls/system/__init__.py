"""Where jaxcls meets the operating system: errors, signals, streams, paths, caches."""
