"""Tenants, members and keys. Rules stand here as constraints; services change the rows."""

from datetime import datetime

from django.conf import settings
from django.core.validators import RegexValidator
from django.db import models
from django.db.models import F, Q

from tenants.scope import TenantOwned, TenantScoped


class Tenant(models.Model):
    """The owner of data and quota: the isolation boundary."""

    slug = models.CharField(
        max_length=40,
        unique=True,
        validators=[
            # "all" means every tenant in pickers and queries
            RegexValidator(
                r"^(?!all$)[a-z][a-z0-9-]*$", "use lower-case letters, digits and hyphens"
            )
        ],
    )
    name = models.CharField(max_length=200)
    node_limit = models.PositiveIntegerField(default=16)
    samples_enabled = models.BooleanField(
        default=True,
        help_text="nodes report which blocks a sample of requests asked for: keyed ids and times",
    )
    sample_rate_log = models.PositiveSmallIntegerField(
        default=4, editable=False, help_text="nodes sample one block of 2ⁿ; chosen by traffic"
    )
    is_active = models.BooleanField(default=True)
    is_leaving = models.BooleanField(default=False, editable=False, help_text="being removed")
    cut_off_at = models.DateTimeField(
        null=True,
        blank=True,
        editable=False,
        help_text="its nodes harmed others: they are kept out",
    )
    cut_off_reason = models.CharField(max_length=200, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("slug",)

    def __str__(self) -> str:
        return self.slug


class Membership(models.Model):
    """A person's role in a tenant. Operators are staff accounts and need none."""

    class Role(models.TextChoices):
        VIEWER = "viewer", "Viewer: reads"
        TEAM = "team", "Team: pins, expires, extends"

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships"
    )
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role, default=Role.TEAM)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=("user", "tenant"), name="membership_once"),
        ]

    def __str__(self) -> str:
        return f"{self.user} in {self.tenant} as {self.role}"


class Invitation(TenantOwned):
    """A link that gives its first user a role in a tenant, until it ends.

    Only a keyed hash of its token is stored. `is_mailed`: the platform sent the link to `email`, so
    whoever opens it reads mail of that address.
    """

    email = models.EmailField()
    role = models.CharField(max_length=10, choices=Membership.Role)
    token_hmac = models.CharField(max_length=64, unique=True)
    invited_by = models.CharField(max_length=200)
    is_mailed = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True, blank=True)
    accepted_at = models.DateTimeField(null=True, blank=True)
    accepted_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
    )

    class Meta(TenantOwned.Meta):
        ordering = ("-created_at", "-pk")
        constraints = [
            models.UniqueConstraint(
                name="invitation_once",
                fields=("tenant", "email"),
                condition=Q(accepted_at=None, revoked_at=None),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.email} to {self.tenant} as {self.role}"

    def is_open(self, now: datetime) -> bool:
        return self.revoked_at is None and self.accepted_at is None and self.expires_at > now


class ApiKey(TenantScoped):
    """A key is a searchable prefix and a secret; only the secret's keyed hash is stored.

    `scopes`: what a team's or operator's key may do, sorted; a node's has none. `made_by`: the team
    key that made it, whose revocation ends it too. `rotated_from`: the key that it replaces;
    `first_number`: of the first of these, which may be deleted by now; None: itself.
    """

    class Role(models.TextChoices):
        NODE = "node"
        TEAM = "team"
        OPERATOR = "operator"

    class Scope(models.TextChoices):
        READ = "read", "Read: sees all that its role sees"
        WRITE = "write", "Write: reads, and changes all that its role changes, except keys"
        CONTEXTS = "contexts", "Contexts: reads and changes contexts and looks prompts up, only"
        KEYS = "keys", "Keys: makes, rotates and revokes keys with no more scopes than its own"

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, null=True, blank=True)
    name = models.CharField(max_length=100)
    role = models.CharField(max_length=10, choices=Role)
    prefix = models.CharField(max_length=12, unique=True)
    secret_hmac = models.CharField(max_length=64)
    scopes = models.JSONField(default=list, blank=True)
    made_by = models.ForeignKey(
        "self",
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        editable=False,
        related_name="made",
    )
    rotated_from = models.ForeignKey(
        "self",
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        editable=False,
        related_name="next",
    )
    first_number = models.PositiveBigIntegerField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    hot_generation = models.PositiveIntegerField(
        default=0, editable=False, help_text="changes the password of the key's Valkey user"
    )

    class Meta(TenantScoped.Meta):
        ordering = ("-created_at", "-pk")
        constraints = [
            models.CheckConstraint(
                name="apikey_operator_has_no_tenant",
                condition=Q(role="operator", tenant=None)
                | Q(role__in=("node", "team"), tenant__isnull=False),
            ),
            models.UniqueConstraint(
                name="apikey_rotated_once",
                fields=("rotated_from",),
                condition=Q(revoked_at=None, rotated_from__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} (neve_{self.prefix}_…)"

    @property
    def owner_number(self) -> int:
        """The number by which pins belong to it: that of the first key of its rotations."""
        return int(self.first_number or self.pk)

    def has_ended(self, now: datetime) -> bool:
        return self.revoked_at is not None or (
            self.expires_at is not None and self.expires_at <= now
        )


class Quota(TenantOwned):
    """Hard limits of one tenant. Bytes: 0 refuses every write. Rows: None takes the settings'."""

    ROW_LIMITS = ("space_limit", "context_limit", "context_block_limit")

    tenant = models.OneToOneField(Tenant, on_delete=models.CASCADE, related_name="quota")
    hot_bytes = models.BigIntegerField()
    cold_bytes = models.BigIntegerField()
    space_limit = models.PositiveIntegerField(
        null=True, blank=True, help_text="spaces; empty: NEVE_SPACE_LIMIT"
    )
    context_limit = models.PositiveIntegerField(
        null=True, blank=True, help_text="contexts; empty: NEVE_CONTEXT_LIMIT"
    )
    context_block_limit = models.PositiveIntegerField(
        null=True, blank=True, help_text="blocks of one context; empty: NEVE_CONTEXT_BLOCK_LIMIT"
    )

    class Meta(TenantOwned.Meta):
        ordering = ("tenant",)
        constraints = [
            models.CheckConstraint(
                name="quota_not_negative", condition=Q(hot_bytes__gte=0, cold_bytes__gte=0)
            ),
        ]

    def __str__(self) -> str:
        return f"quota of {self.tenant.slug}"


class AuditEvent(TenantScoped):
    """A change: its actor, object, and values before and after. Names are copies, which stay."""

    tenant = models.ForeignKey(Tenant, on_delete=models.SET_NULL, null=True, blank=True)
    at = models.DateTimeField(auto_now_add=True)
    actor_name = models.CharField(max_length=200)
    address = models.CharField(
        max_length=64, blank=True, help_text="of the caller, as web sees it behind its proxy"
    )
    key_id = models.PositiveBigIntegerField(null=True, blank=True, help_text="of the caller's key")
    is_by_operator = models.BooleanField(default=False)
    request_id = models.CharField(max_length=64, blank=True)
    action = models.CharField(max_length=60)
    object_type = models.CharField(max_length=40)
    object_id = models.CharField(max_length=64)
    before = models.JSONField(null=True, blank=True)
    after = models.JSONField(null=True, blank=True)

    class Meta(TenantScoped.Meta):
        ordering = ("-at", "-pk")
        indexes = [models.Index(F("tenant"), F("at").desc(), name="audit_of_tenant")]

    def __str__(self) -> str:
        return f"{self.actor_name} {self.action} {self.object_type} {self.object_id}"
