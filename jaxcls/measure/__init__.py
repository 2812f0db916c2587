"""Speed, cost and memory: benchmarks, and rehearsals for devices that are not there."""
