"""Django settings. Values that differ between installations come from `controlplane.env`."""

import re

from csp import constants as csp
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from base import logs
from controlplane import env as environment
from neve.node.membership import MemberState

ENV = environment.read()
ROOT = environment.ROOT
VAR = environment.VAR

SECRET_KEY = ENV.secret_key
DEBUG = ENV.debug

# The proxy in front (`controlplane.front`) terminates TLS if NEVE_URL is https.
IS_TLS = ENV.url.scheme == "https"
FORCE_SCRIPT_NAME = ENV.url.path or None
ALLOWED_HOSTS = [*ENV.hosts, *([ENV.url.hostname] if ENV.url.hostname else [])]
CSRF_TRUSTED_ORIGINS = [
    f"https://*{host}" if host.startswith(".") else f"https://{host}"
    for host in ALLOWED_HOSTS
    if host != "*"
]
if ENV.url.netloc:
    CSRF_TRUSTED_ORIGINS.append(f"{ENV.url.scheme}://{ENV.url.netloc}")
SESSION_COOKIE_PATH = CSRF_COOKIE_PATH = f"{ENV.url.path}/"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = IS_TLS
if IS_TLS:
    # A client that bypasses the proxy can forge this header, to its own harm only.
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_SSL_REDIRECT = True
    # Nodes on this host (the demo) use the port directly; a redirect would make them resend keys.
    SECURE_REDIRECT_EXEMPT = [rf"^({re.escape(ENV.url.path[1:])}/)?cache/v1/"]
    SECURE_HSTS_SECONDS = 365 * 86_400
# HSTS for subdomains and preload lists is the domain owner's decision.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "csp",
    "django_htmx",
    "django_filters",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "channels",
    "allauth",
    "allauth.account",
    "allauth.socialaccount",
    "allauth.mfa",
    "allauth.usersessions",
    "base",
    "storage",
    "tenants",
    "events",
    "catalog",
    "engines",
    "retention",
    "contexts",
    "tiering",
    "planning",
    "incidents",
    "cacheapi",
    "dashboard",
    "workers",
]

MIDDLEWARE = [
    "base.requests.RequestIdMiddleware",
    "csp.middleware.CSPMiddleware",
    "controlplane.front.SecretsMiddleware",
    "controlplane.health.HealthMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "base.nul.NulMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "tenants.second_factor.Gate",
    "tenants.sign_ins.Seen",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "base.problem_responses.ProblemMiddleware",
]

ROOT_URLCONF = "controlplane.urls"
ASGI_APPLICATION = "controlplane.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [ROOT / "dashboard"],  # "pages/keys/page.html" is in dashboard/pages/keys
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {"default": {**ENV.database, "CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTHENTICATION_BACKENDS = ["tenants.signing_in.SignInBackend"]
LOGIN_URL = "dashboard:login"
PASSWORD_RESET_TIMEOUT = 3_600  # of a mailed link
# django-allauth: the flow of OpenID Connect, the second factor, the rows of sessions. Its pages and
# its limits are replaced by ours, which need no valkey-bus.
ACCOUNT_ADAPTER = "tenants.single_sign_on.Accounts"
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_RATE_LIMITS = False
SOCIALACCOUNT_ADAPTER = "tenants.single_sign_on.Identities"
SOCIALACCOUNT_PROVIDERS = {
    "neve_oidc": {
        "OAUTH_PKCE_ENABLED": True,
        "APPS": [
            {
                "provider_id": "sso",
                "name": ENV.oidc_name,
                "client_id": ENV.oidc_client_id,
                "secret": ENV.oidc_client_secret,
                "settings": {"server_url": ENV.oidc_url},
            }
        ],
    }
}
MFA_ADAPTER = "tenants.second_factor.Sealed"
MFA_TOTP_TOLERANCE = 1  # time steps of 30 s, before and after: clocks differ
MFA_SUPPORTED_TYPES = ["totp", "recovery_codes"]
LOGIN_REDIRECT_URL = "dashboard:overview"
LOGOUT_REDIRECT_URL = "dashboard:login"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SECURE_CONTENT_TYPE_NOSNIFF = True
X_FRAME_OPTIONS = "DENY"
# For every response, the admin's and errors included. Scripts and styles: from this host, or with
# the nonce `request.csp_nonce`; no inline handlers, no style attributes, no other hosts.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [csp.NONE],
        "script-src": [csp.SELF, csp.NONCE],
        "style-src": [csp.SELF, csp.NONCE],
        "img-src": [csp.SELF],
        "connect-src": [csp.SELF],
        "form-action": [csp.SELF],
        "base-uri": [csp.NONE],
        "frame-ancestors": [csp.NONE],
    },
}
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True

STATIC_URL = f"{ENV.url.path}/static/"
STATIC_ROOT = VAR / "static"
# WhiteNoise finds assets in the apps, so `make up` needs no collectstatic. The production image
# runs it, which compresses all assets; `make` compresses only Plotly.
WHITENOISE_USE_FINDERS = True
WHITENOISE_IMMUTABLE_FILE_TEST = r"/plotly/.*\.js$"  # Plotly's file names contain its version
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedStaticFilesStorage"},
}

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": ["cacheapi.base.access.Nobody"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["cacheapi.base.parsers.BoundedJSONParser"],
    "DEFAULT_THROTTLE_CLASSES": [
        f"cacheapi.base.throttles.{who}Throttle" for who in ("Caller", "Address")
    ],
    "DEFAULT_THROTTLE_RATES": {
        "caller": ENV.rate_caller,
        "address": ENV.rate_address,
        "node": ENV.rate_node,
    },
    "URL_FORMAT_OVERRIDE": None,  # `format` is a parameter of exports
    "NUM_PROXIES": 0,  # address as uvicorn gives it: headers can be forged
    "DEFAULT_SCHEMA_CLASS": "cacheapi.base.openapi.Operations",
    "EXCEPTION_HANDLER": "base.problem_responses.exception_handler",
    "UNAUTHENTICATED_USER": None,
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Neve",
    "DESCRIPTION": "Govern contexts, tenants and usage of a KV-cache platform.",
    "VERSION": "1",
    "SCHEMA_PATH_PREFIX": r"/(api|cache)/v1",
    "SERVERS": [{"url": ENV.url.path}] if ENV.url.path else [],
    "SERVE_INCLUDE_SCHEMA": False,
    "COMPONENT_SPLIT_REQUEST": True,
    "COMPONENT_SPLIT_PATCH": False,  # bodies of PATCH have serializers of their own
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "cacheapi.base.openapi.allow_blank",
        "cacheapi.base.openapi.add_problems",
        "cacheapi.base.links.add_links",
    ],
    "ENUM_NAME_OVERRIDES": {
        "MemberStateEnum": [each.value for each in MemberState],
        "ContextStateEnum": "catalog.models.Context.State",
        "PinTierEnum": "catalog.models.Pin.Tier",
        "RoleEnum": "tenants.models.ApiKey.Role",
        "ScopesEnum": "tenants.models.ApiKey.Scope",
        "TenantRoleEnum": "tenants.models.Membership.Role",
    },
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    # It needs only empty querysets, but `objects` refuses even these outside of a tenant scope.
    "DEFAULT_QUERY_MANAGER": "_base_manager",
}

# Shared counters of the web processes. Only numbers: nothing is unpickled.
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": ENV.bus_url,
        "KEY_PREFIX": "neve",
        # One retry, for a connection that a restarted bus has closed.
        "OPTIONS": {"socket_timeout": 1, "retry": Retry(NoBackoff(), 1)},
    }
}

CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.core.RedisChannelLayer",
        "CONFIG": {
            # Longer than the layer's blocking reads (`brpop_timeout`, 5 s). redis-py's default is
            # 5 s, too, so it would time out on idle sockets again and again. Its ten retries would
            # hold a page's socket for minutes on a bus that stands still: one is for a connection
            # that was lost meanwhile.
            "hosts": [
                {
                    "address": ENV.bus_url,
                    "socket_connect_timeout": 1,
                    "socket_timeout": 15,
                    "retry": AsyncRetry(NoBackoff(), 1),
                }
            ],
            "prefix": "neve",
            "expiry": 10,
        },
    }
}

# Without NEVE_MAIL_URL nothing is sent: whoever would send a mail checks `ENV.mail_url`.
EMAIL_BACKEND = "django.core.mail.backends.dummy.EmailBackend"
globals().update({name: value for name, value in ENV.mail_url.items() if name.startswith("EMAIL_")})
EMAIL_TIMEOUT = 10
DEFAULT_FROM_EMAIL = SERVER_EMAIL = ENV.mail_from or "neve@localhost"

# Where requests to addresses of users may go: see `base.outbound`.
OUTBOUND_ALLOW = ENV.outbound_allow

LOGGING = logs.config(ENV.log_format)
