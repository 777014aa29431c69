"""The provider of identities, by OpenID Connect: django-allauth's client with three more checks.

A nonce binds the ID token to this browser's sign-in; ID token and user info must be of one subject;
and an identity is named by issuer and subject, so that another issuer's subjects are other people.
State and PKCE are allauth's. allauth finds the module by its name.
"""

import hmac
import secrets
from hashlib import sha256
from typing import Any

from allauth.socialaccount.providers.base import ProviderException
from allauth.socialaccount.providers.oauth2.views import OAuth2CallbackView
from allauth.socialaccount.providers.openid_connect.provider import OpenIDConnectProvider
from allauth.socialaccount.providers.openid_connect.views import OpenIDConnectOAuth2Adapter
from django.conf import settings
from django.http import HttpRequest, HttpResponseBase
from django.urls import reverse

from tenants.links import absolute

PROVIDER = "sso"
NONCE = "neve_oidc_nonce"  # of a session
KEPT_CLAIMS = ("iss", "sub", "email", "email_verified", "name", "preferred_username")


class Adapter(OpenIDConnectOAuth2Adapter):  # type: ignore[misc]
    def get_callback_url(self, request: HttpRequest, app: Any) -> str:
        return absolute(request, reverse("dashboard:sso-callback"))

    def complete_login(self, request: HttpRequest, app: Any, token: Any, **kwargs: Any) -> Any:
        """Raises ProviderException for an answer that is not of this sign-in."""
        id_token = kwargs["response"].get("id_token")
        if not id_token:
            raise ProviderException("the provider sent no ID token")
        claims = self._decode_id_token(app, id_token)
        nonce = request.session.pop(NONCE, "")
        if not nonce or not hmac.compare_digest(str(claims.get("nonce", "")), nonce):
            raise ProviderException("the ID token has another nonce")
        info = self._fetch_user_info(token.token)
        if not claims.get("sub") or info.get("sub") != claims["sub"]:
            raise ProviderException("ID token and user info are of two subjects")
        found = {"userinfo": {**claims, **info}, "id_token": claims}
        return self.get_provider().sociallogin_from_response(request, found)


class Provider(OpenIDConnectProvider):  # type: ignore[misc]
    id = "neve_oidc"
    oauth2_adapter_class = Adapter

    def begin(self, request: HttpRequest, *, process: str, next_url: str | None) -> Any:
        """Sends the browser to the provider. `process`: login or connect."""
        request.session[NONCE] = nonce = secrets.token_urlsafe(24)
        return self.redirect(
            request,
            process=process,
            next_url=next_url,
            auth_params=self.get_auth_params() | {"nonce": nonce},
        )

    def extract_uid(self, data: Any) -> str:
        claims = data["id_token"]
        return sha256(f"{claims['iss']}\n{claims['sub']}".encode()).hexdigest()

    def extract_extra_data(self, data: Any) -> dict[str, Any]:
        """What is kept in the database of an identity."""
        names = (*KEPT_CLAIMS, settings.ENV.oidc_groups_claim)
        return {name: data["userinfo"][name] for name in names if name in data["userinfo"]}


def come_back(request: HttpRequest) -> HttpResponseBase:
    """Answers the browser that the provider sent back."""
    view = OAuth2CallbackView.adapter_view(Adapter(request, PROVIDER))
    answer: HttpResponseBase = view(request)
    return answer


provider_classes = [Provider]
