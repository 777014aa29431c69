"""/api/v1, for teams and operators: a module a resource, with its view, shapes and filter."""
