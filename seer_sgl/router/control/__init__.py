"""Control calls of trainers: which engines they go to, and what their answers make together."""
