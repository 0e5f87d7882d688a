"""Reading: the list of what waits to be reported, and the page where a report is written and signed."""
