"""The HTTP front: one module for each family of routes, put together by `app.py`."""
