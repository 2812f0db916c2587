"""A job of several processes and devices: joining, agreeing, the mesh, stops, compile cache."""
