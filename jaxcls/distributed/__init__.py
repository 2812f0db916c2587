"""Training on several processes and devices: job, agreement, mesh, stops, keys, compile cache."""
