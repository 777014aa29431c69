"""Addresses of the dashboard: pages, actions of pages, and the live numbers."""

from django.urls import path

from dashboard.pages.account import view as account
from dashboard.pages.audit.view import audit
from dashboard.pages.context import view as context
from dashboard.pages.contexts import view as contexts
from dashboard.pages.explorer.view import explorer
from dashboard.pages.families.view import families, try_again
from dashboard.pages.incident import view as incident
from dashboard.pages.incidents import view as incidents
from dashboard.pages.invitation import view as invitation
from dashboard.pages.jobs import view as jobs
from dashboard.pages.keys import view as keys
from dashboard.pages.login import forgotten
from dashboard.pages.login import view as login
from dashboard.pages.node.view import node
from dashboard.pages.nodes.view import nodes
from dashboard.pages.overview.view import overview
from dashboard.pages.policies.view import policies
from dashboard.pages.savings.view import savings_page
from dashboard.pages.space.view import space
from dashboard.pages.spaces.view import compare, spaces
from dashboard.pages.system.view import system
from dashboard.pages.tenant.view import tenant
from dashboard.pages.tenants.view import tenant_new, tenants
from dashboard.pages.tiers.view import reclaim_now, tiers
from dashboard.pages.webhooks import view as webhooks
from dashboard.pages.what_if.view import what_if
from dashboard.pages.why.view import why_page
from dashboard.palette import palette

app_name = "dashboard"
urlpatterns = [
    path("", overview, name="overview"),
    path("palette.json", palette, name="palette"),
    path("explorer/", explorer, name="explorer"),
    path("login/", login.sign_in, name="login"),
    path("login/code/", login.code, name="login-code"),
    path("login/sso/", login.sso, name="sso"),
    path("login/sso/callback/", login.sso_callback, name="sso-callback"),
    path("login/forgotten/", forgotten.forgot, name="forgot"),
    path("login/forgotten/<str:number>/<str:token>/", forgotten.reset, name="reset"),
    path("logout/", login.sign_out, name="logout"),
    path("account/", account.account, name="account"),
    path("account/password", account.password, name="account-password"),
    path("account/address", account.address, name="account-address"),
    path("account/address/<str:token>/", account.prove_address, name="prove-address"),
    path("account/look", account.look, name="account-look"),
    path("account/link", account.link, name="account-link"),
    path("account/unlink/<int:identity_id>", account.unlink, name="identity-unlink"),
    path("account/sessions/end", account.end_others, name="account-end-others"),
    path("account/sessions/<int:sign_in_id>/end", account.end_session, name="signin-end"),
    path("account/second-factor/", account.factor, name="second-factor"),
    path("account/second-factor/on", account.factor_on, name="second-factor-on"),
    path("account/second-factor/off", account.factor_off, name="second-factor-off"),
    path("account/second-factor/codes", account.factor_codes, name="second-factor-codes"),
    path("tenants/", tenants, name="tenants"),
    path("tenants/<int:tenant_id>/invitations", invitation.invite, name="tenant-invite"),
    path("invitations/<int:invitation_id>/revoke", invitation.revoke, name="invitation-revoke"),
    path("invitations/<str:token>/", invitation.accept, name="invitation"),
    path("tenants/<slug:slug>/", tenant, name="tenant"),
    path("new-tenant/", tenant_new, name="tenant-new"),
    path("policies/", policies, name="policies"),
    path("nodes/", nodes, name="nodes"),
    path("nodes/<uuid:uuid>/", node, name="node"),
    path("families/", families, name="families"),
    path("families/members/<int:member_id>/again", try_again, name="member-try-again"),
    path("savings/", savings_page, name="savings"),
    path("system/", system, name="system"),
    path("tiers/", tiers, name="tiers"),
    path("tiers/<slug:slug>/<slug:what>", reclaim_now, name="tiers-reclaim"),
    path("spaces/", spaces, name="spaces"),
    path("spaces/compare/", compare, name="spaces-compare"),
    path("spaces/<int:number>/", space, name="space"),
    path("why/", why_page, name="why"),
    path("what-if/", what_if, name="what_if"),
    path("incidents/", incidents.incidents, name="incidents"),
    path("incidents/mail", incidents.wish_mail, name="incident-mail"),
    path("incidents/rules/<slug:kind>", incidents.set_rule, name="alert-rule"),
    path("incidents/<uuid:uuid>/", incident.incident, name="incident"),
    path("incidents/<uuid:uuid>/do", incident.act, name="incident-act"),
    path("jobs/", jobs.jobs, name="jobs"),
    path("jobs/<uuid:uuid>/", jobs.job, name="job"),
    path("jobs/<uuid:uuid>/retry", jobs.retry, name="job-retry"),
    path("jobs/<uuid:uuid>/cancel", jobs.cancel, name="job-cancel"),
    path("audit/", audit, name="audit"),
    path("contexts/", contexts.contexts, name="contexts"),
    path("contexts/act", contexts.act, name="contexts-act"),
    path("contexts/<uuid:uuid>/", context.context, name="context"),
    path("contexts/<uuid:uuid>/pin", context.pin, name="context-pin"),
    path("contexts/<uuid:uuid>/unpin", context.unpin, name="context-unpin"),
    path("contexts/<uuid:uuid>/expire", context.expire, name="context-expire"),
    path("contexts/<uuid:uuid>/extend", context.extend, name="context-extend"),
    path("contexts/<uuid:uuid>/warm", context.warm, name="context-warm"),
    path("contexts/<uuid:uuid>/change", context.change, name="context-change"),
    path("contexts/<uuid:uuid>/delete", context.delete, name="context-delete"),
    path("webhooks/", webhooks.webhooks, name="webhooks"),
    path("webhooks/<uuid:uuid>/test", webhooks.test, name="webhook-test"),
    path("keys/", keys.keys, name="keys"),
    path("keys/<int:key_id>/revoke", keys.revoke, name="key-revoke"),
    path("keys/<int:key_id>/rotate", keys.rotate, name="key-rotate"),
    path("keys/<int:key_id>/first-use", keys.first_use, name="key-first-use"),
]
