"""The method of the paper: rewards, judges, labels, search, and figures against the truth."""
