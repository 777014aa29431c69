"""Admin pages of policies and rules, with a dry run before saving."""

from dataclasses import asdict
from typing import Any

from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import Field, QuerySet
from django.forms import ModelChoiceField, ModelForm
from django.http import HttpRequest
from valkey.exceptions import ValkeyError

from catalog.models import Space
from retention import services
from retention.dry_run import MOST_BLOCKS, dry_run, proposed_rulebook
from retention.models import RetentionPolicy, RetentionRule
from retention.rulebook import Rulebook, rulebook_of
from tenants.admin_site import TenantOwnedAdmin
from tenants.audit import actor_of
from tenants.scope import tenant_scope


class _DryRunAdmin(TenantOwnedAdmin):
    """The button "Dry run" answers like a form that is not right yet: nothing is saved."""

    change_form_template = "admin/retention/change_form.html"

    def proposed(self, obj: Any) -> tuple[int, Rulebook]:
        """The tenant, and its rulebook with this row as it stands in the form."""
        raise NotImplementedError

    def get_form(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> type[ModelForm]:
        proposed = self.proposed

        class DryRunForm(super().get_form(request, obj, **kwargs)):
            def _post_clean(self) -> None:
                super()._post_clean()
                if "_dry_run" in request.POST and not self.errors:
                    self.add_error(None, _told(*proposed(self.instance)))

        return DryRunForm


def _told(tenant_id: int, book: Rulebook) -> ValidationError:
    try:
        report = dry_run(tenant_id, book, most_blocks=MOST_BLOCKS)
    except ValkeyError:
        return ValidationError("Dry run: the hot tier did not answer. Nothing was saved.")
    facts = ", ".join(f"{name} {value}" for name, value in asdict(report).items())
    return ValidationError(f"Dry run, nothing was saved. This would go at once: {facts}")


@admin.register(RetentionPolicy)
class RetentionPolicyAdmin(_DryRunAdmin):
    list_display = (
        *("tenant", "flush_mode", "flush_after_s", "hot_idle_s", "cold_ttl_s", "max_age_s"),
        *("priority", "pin_budget_bytes", "cold_full", "is_applied"),
    )
    list_select_related = ("tenant",)

    @admin.display(boolean=True, description="stored blocks follow")
    def is_applied(self, obj: RetentionPolicy) -> bool:
        return obj.is_applied

    def proposed(self, obj: RetentionPolicy) -> tuple[int, Rulebook]:
        chosen = {name: getattr(obj, name) for name in services.FIELDS}
        return obj.tenant_id, proposed_rulebook(obj.tenant, policy=chosen)

    def save_model(
        self, request: HttpRequest, obj: RetentionPolicy, form: ModelForm, change: bool
    ) -> None:
        chosen = {name: getattr(obj, name) for name in services.FIELDS}
        services.set_policy(tenant=obj.tenant, actor=actor_of(request), **chosen)


@admin.register(RetentionRule)
class RetentionRuleAdmin(_DryRunAdmin):
    list_display = ("tenant", "space", "label", "context", "order", "overrides")
    list_select_related = ("tenant", "space")
    search_fields = ("label", "context")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.is_staff)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.is_staff)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("tenant",) if obj else ()

    def formfield_for_dbfield(self, db_field: Field, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "space":  # a relation's own form field would read `objects`
            return ModelChoiceField(Space.unscoped.select_related("tenant"), required=False)
        return super().formfield_for_dbfield(db_field, request, **kwargs)

    def proposed(self, obj: RetentionRule) -> tuple[int, Rulebook]:
        book = rulebook_of(obj.tenant_id)
        with tenant_scope(obj.tenant_id):
            others = [row.rule() for row in RetentionRule.objects.exclude(pk=obj.pk)]
        return obj.tenant_id, Rulebook(book.policy, (*others, obj.rule()))

    def save_model(
        self, request: HttpRequest, obj: RetentionRule, form: ModelForm, change: bool
    ) -> None:
        chosen = {name: getattr(obj, name) for name in services.RULE_FIELDS}
        if change:
            services.change_rule(rule=obj, actor=actor_of(request), **chosen)
            return
        obj.pk = services.add_rule(tenant=obj.tenant, actor=actor_of(request), **chosen).pk

    def delete_model(self, request: HttpRequest, obj: RetentionRule) -> None:
        services.remove_rule(rule=obj, actor=actor_of(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet) -> None:
        for rule in queryset:
            self.delete_model(request, rule)
