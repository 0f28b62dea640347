"""What people look at: report, judging page, terminal view."""
