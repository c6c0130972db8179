"""A discrete-event simulator around the router's own core: policies at any scale, without a machine."""
