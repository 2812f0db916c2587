"""Other people's weights: files and hubs to our variables, with a report."""
