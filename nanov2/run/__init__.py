"""A run: settings, folder, phases, plan, command line."""
