"""What travels between engines and draft servers, and what both ends keep of it."""
