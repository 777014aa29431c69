"""The client in its asynchronous form. `neve.api._sync` is made from it by `make openapi`."""
