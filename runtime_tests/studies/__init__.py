"""Many experiments beside each other: comparison of methods, sweep of exports."""
