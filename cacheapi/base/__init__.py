"""Parts of both APIs: who asks, bodies, query strings, limits, the OpenAPI document."""
