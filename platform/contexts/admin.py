"""Admin pages of retention policies and rules. Not in `retention`: a dry run reads contexts."""

from typing import Any

from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import Field, QuerySet
from django.forms import ModelChoiceField, ModelForm
from django.http import HttpRequest, HttpResponse
from valkey.exceptions import ValkeyError

from catalog.models import Space
from contexts.dry_run import MOST_BLOCKS, dry_run, proposed_rulebook
from neve.replay.report import format_bytes
from retention import services
from retention.models import RetentionPolicy, RetentionRule
from retention.rulebook import Rulebook, rulebook_of
from tenants.admin_site import TenantOwnedAdmin
from tenants.principal import actor_of
from tenants.scope import tenant_scope


class _DryRunAdmin(TenantOwnedAdmin):
    """Adds the button "Dry run": shows the report as a form error, so nothing is saved."""

    change_form_template = "admin/retention/change_form.html"

    def proposed(self, obj: Any) -> tuple[int, Rulebook]:
        """Tenant id, and the tenant's rulebook with this row's values from the form."""
        raise NotImplementedError

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        form = context["adminform"].form
        if getattr(form, "is_dry_run", False):  # the report is no error to correct
            context |= {"errors": None, "dry_run": form.non_field_errors()}
        return super().render_change_form(request, context, *args, **kwargs)

    def get_form(
        self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any
    ) -> type[ModelForm]:
        proposed = self.proposed
        form = super().get_form(request, obj, change, **kwargs)

        class DryRunForm(form):  # type: ignore[misc, valid-type]  # Django makes it per request
            is_dry_run = False

            def _post_clean(self) -> None:
                super()._post_clean()
                if "_dry_run" in request.POST and not self.errors:
                    self.is_dry_run = True
                    self.add_error(None, _report(*proposed(self.instance)))

        return DryRunForm


def _report(tenant_id: int, book: Rulebook) -> ValidationError:
    try:
        report = dry_run(tenant_id, book, most_blocks=MOST_BLOCKS)
    except ValkeyError:
        return ValidationError("Dry run: the hot tier did not answer. Nothing was saved.")
    hot, cold = format_bytes(report.removed_hot_bytes), format_bytes(report.removed_cold_bytes)
    seen = "all" if report.is_complete else "the first"
    return ValidationError(
        f"Dry run, nothing was saved. Saving this would remove {report.removed_blocks} blocks at "
        f"once ({hot} hot, {cold} cold) and take {report.cooled_blocks} idle ones "
        f"({format_bytes(report.cooled_bytes)}) out of the hot tier; {report.contexts} contexts "
        f"would lose blocks. It looked at {seen} {report.looked_at} blocks."
    )


@admin.register(RetentionPolicy)
class RetentionPolicyAdmin(_DryRunAdmin):
    hints = {
        "flush_after_s": "seconds; only for “Flush after some seconds”",
        "hot_idle_s": "seconds; unused for so long, a block leaves the hot tier. Empty: no limit",
        "cold_ttl_s": "seconds that a block lives after it was stored, in either tier. "
        "Empty: no limit",
        "max_age_s": "seconds; the end that only a pin prolongs. Empty: no limit",
        "priority": "0 to 9: the lower leaves first",
        "pin_budget_bytes": "bytes that all pins may hold together; 1 GiB is 1073741824. "
        "Empty: no limit",
        "promote_window_s": "seconds; a cold block that is read twice so close together becomes "
        "hot again. 0: never",
    }
    list_display = (
        *("tenant", "flush_mode", "flush_after_s", "hot_idle_s", "cold_ttl_s", "max_age_s"),
        *("priority", "pin_budget_bytes", "cold_full", "cold_codec", "is_applied"),
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
