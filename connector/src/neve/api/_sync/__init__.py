"""The client in its synchronous form. Made from `neve.api._async`: do not edit."""
