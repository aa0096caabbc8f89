"""What people look at: the pages of a report, a comparison, an explanation, a run's course, and their figures."""
