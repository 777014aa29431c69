"""All addresses: the dashboard at the root, REST, the cache endpoint, metrics, the admin."""

from django.contrib import admin
from django.templatetags.static import static
from django.urls import include, path, re_path
from django.views.generic import RedirectView

from base import problem_responses as problems
from controlplane.doors import admin_login
from controlplane.health import healthz

admin.site.site_header = "Neve"
admin.site.site_title = "Neve admin"


class Icon(RedirectView):
    """For pages that name no icon, such as the admin's."""

    def get_redirect_url(self, *args: object, **kwargs: object) -> str:
        return static("dashboard/neve.svg")


urlpatterns = [
    path("api/v1/", include("cacheapi.teams.urls")),
    path("cache/v1/", include("cacheapi.nodes.urls")),
    path("metrics", include("metrics.urls")),
    path("favicon.ico", Icon.as_view()),
    path("healthz", healthz, name="healthz"),
    path("problems/<slug:kind>", problems.explain, name="problem"),
    re_path(r"^(?:api|cache)/", problems.unknown_address),
    path("admin/login/", admin_login),
    path("admin/", admin.site.urls),
    path("", include("dashboard.urls")),
    # Names that allauth looks up; the dashboard's pages answer at the addresses.
    path("login/", RedirectView.as_view(pattern_name="dashboard:login"), name="account_login"),
    path("account/", RedirectView.as_view(), name="socialaccount_connections"),
]

handler400 = problems.bad_request
handler403 = problems.forbidden
handler404 = problems.not_found
handler500 = problems.server_error
