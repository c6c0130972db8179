"""A client that sends groups of prompts to a router and reports what happened."""
