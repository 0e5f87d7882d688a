"""The interface analyst's room: sources and their versions, dry runs, samples, messages, lanes, traffic."""
