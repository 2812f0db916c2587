"""The border to the operating system: errors, signals, output streams, paths, files, caches."""
