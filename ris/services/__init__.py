"""The services that decide. Each takes a unit of work; none commits by itself."""
