"""Views: one module a page. They gather with selectors, change with services, render templates."""
