"""Stand-ins for tests of logic, shipped because users of the router need them too."""
