"""The tab Policy: rules as people say them, a draft with its dry run in words, the history.

A draft is the query of the address (`?tab=policy&cold_ttl_s=14+d`): the page shows what it would
do, and its button sends the same values. Nothing is saved by reading.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.core.exceptions import ValidationError
from valkey.exceptions import ValkeyError

from catalog.models import Space
from contexts.dry_run import MOST_BLOCKS, DryRun, dry_run, proposed_rulebook
from dashboard.formats import bytes_quantity, count_quantity
from neve.typed import parse_size_or_none, parse_time, size_typed, time_typed
from retention.models import (
    ColdCodec,
    ColdFull,
    EvictionPolicy,
    FlushMode,
    RetentionPolicy,
    RetentionRule,
)
from retention.services import FIELDS
from tenants.models import Tenant
from tenants.scope import tenant_scope


@dataclass(frozen=True)
class Input:
    """A field of the policy as the form has it. `options`: of a select; none: a text field."""

    name: str
    label: str
    hint: str
    read: Callable[[str], Any]
    write: Callable[[Any], str]
    options: tuple[tuple[str, str], ...] = ()


def _whole(text: str) -> int:
    plain = text.strip()
    if not (plain.isascii() and plain.isdigit() and len(plain) < 10):
        raise ValueError(f"need a whole number, got {plain[:40]!r}")
    return int(plain)


def _window(text: str) -> int:
    return parse_time(text) or 0  # 0: never


def _window_typed(seconds: int) -> str:
    return time_typed(seconds or None)


def _chosen(text: str) -> str:
    return text.strip()


INPUTS = (
    Input(
        *("flush_mode", "Copy to S3", "what is only in Valkey is lost with it", _chosen, str),
        options=(("now", "at once"), ("after", "after a while"), ("never", "never")),
    ),
    Input(*("flush_after_s", "… after", "only for “after a while”", parse_time, time_typed)),
    Input(
        *("hot_idle_s", "Keep in hot when unused for", "then it rests in cold only"),
        *(parse_time, time_typed),
    ),
    Input(
        *("cold_ttl_s", "Keep for", "after it was stored; people may extend it"),
        *(parse_time, time_typed),
    ),
    Input(
        *("max_age_s", "Keep at most", "for data that must not grow old; only pins outlast it"),
        *(parse_time, time_typed),
    ),
    Input(
        *("pin_budget_bytes", "Pins hold at most", "all pins together"),
        *(parse_size_or_none, size_typed),
    ),
    Input(*("priority", "Priority", "0 to 9: the lower leaves first", _whole, str)),
    Input(
        *("promote_window_s", "Back to hot", "when read twice within this; never: not at all"),
        *(_window, _window_typed),
    ),
    Input(
        *("eviction", "A full hot tier drops", "which clean blocks leave first", _chosen, str),
        options=tuple((str(one.value), str(one.label)) for one in EvictionPolicy),
    ),
    Input(
        *("cold_full", "A full cold tier", "what becomes of new blocks", _chosen, str),
        options=tuple((str(one.value), str(one.label)) for one in ColdFull),
    ),
    Input(
        *("cold_codec", "Blocks in S3", "without loss; older nodes miss compressed ones"),
        *(_chosen, str),
        options=tuple((str(one.value), str(one.label)) for one in ColdCodec),
    ),
    Input(
        *("lossy_codecs", "KV with loss", "MODEL=int8 or fp8, …; nodes must ask for it, too"),
        *(_chosen, str),
    ),
)
BY_NAME = {each.name: each for each in INPUTS}
assert set(BY_NAME) == set(FIELDS)


@dataclass
class Shown:
    """An input with its text. `was`: the present value in words, of one that the draft changes."""

    input: Input
    text: str
    was: str = ""
    error: str = ""

    @property
    def words(self) -> str:
        return dict(self.input.options).get(self.text, self.text)


@dataclass
class Draft:
    """What somebody typed. `changes`: values that differ from the policy, to be saved."""

    shown: list[Shown]
    changes: dict[str, Any] = field(default_factory=dict)
    is_asked: bool = False

    @property
    def errors(self) -> list[Shown]:
        return [each for each in self.shown if each.error]

    @property
    def fields(self) -> list[tuple[str, str]]:
        """Hidden fields that repeat the changes."""
        return [(each.input.name, each.text) for each in self.shown if each.was]


def policy_of(tenant: Tenant) -> RetentionPolicy:
    with tenant_scope(tenant.pk):
        policy: RetentionPolicy = RetentionPolicy.objects.get()
    return policy


def draft_of(policy: RetentionPolicy, typed: Mapping[str, str]) -> Draft:
    """The form with what was typed; absent fields show the policy's values."""
    draft = Draft([], is_asked=any(each.name in typed for each in INPUTS))
    for each in INPUTS:
        present = getattr(policy, each.name)
        shown = Shown(each, typed.get(each.name, each.write(present)))
        try:
            value = each.read(shown.text)
        except ValueError as error:
            shown.error = str(error)
        else:
            if each.options and value not in dict(each.options):
                shown.error = f"need one of {', '.join(dict(each.options))}"
            elif value != present:
                shown.was = in_words(each, present)
                draft.changes[each.name] = value
        draft.shown.append(shown)
    _complete(policy, draft)
    return draft


def _complete(policy: RetentionPolicy, draft: Draft) -> None:
    """The delay belongs to the mode "after" alone: it goes with the mode, and is not compared."""
    mode = draft.changes.get("flush_mode", policy.flush_mode)
    delay = next(each for each in draft.shown if each.input.name == "flush_after_s")
    if mode != FlushMode.AFTER:
        delay.text, delay.was, delay.error = time_typed(None), "", ""
        draft.changes.pop("flush_after_s", None)
    elif draft.changes.get("flush_after_s", policy.flush_after_s) is None and not delay.error:
        delay.error = "say how long, such as 5 min"


def in_words(each: Input, value: Any) -> str:
    text = each.write(value)
    return dict(each.options).get(text, text)


def put_errors(draft: Draft, error: ValidationError) -> None:
    """Errors of the model at the fields that they name; the rest at the first."""
    found = error.message_dict if hasattr(error, "error_dict") else {"": error.messages}
    for name, messages in found.items():
        at = next((each for each in draft.shown if each.input.name == name), draft.shown[0])
        at.error = " ".join(messages)


@dataclass(frozen=True)
class Preview:
    """What a change would do, in words. `button`: says what it does. `report` None: not known."""

    report: DryRun | None
    button: str
    words: str


def preview(tenant: Tenant, *, policy: Any = None, rules: Any = None) -> Preview:
    """Raises ValidationError as saving would. Walks the tenant's index up to MOST_BLOCKS."""
    book = proposed_rulebook(tenant, policy=policy, rules=rules)
    try:
        report = dry_run(tenant.pk, book, most_blocks=MOST_BLOCKS)
    except (ValkeyError, OSError):
        return Preview(
            None, "Save without a dry run", "The hot tier does not answer: nobody knows."
        )
    return Preview(report, _button(report), _says(report))


def _button(report: DryRun) -> str:
    removed = report.removed_hot_bytes + report.removed_cold_bytes
    if removed:
        least = "" if report.is_complete else "at least "
        return f"Save: frees {least}{bytes_quantity(removed)}"
    if report.cooled_bytes:
        return f"Save: {bytes_quantity(report.cooled_bytes)} leave hot"
    return "Save: nothing leaves now"


def _says(report: DryRun) -> str:
    """One or two sentences."""
    least = "" if report.is_complete else "at least "
    looked = f"{count_quantity(report.looked_at)} blocks"
    if report.touches_nothing:
        seen = f"of {looked}" if report.is_complete else f"of the first {looked}"
        return f"Nothing leaves at once: {seen}, none is past the new limits."
    said = []
    if report.removed_blocks:
        said.append(
            f"frees {least}{bytes_quantity(report.removed_cold_bytes)} in cold and "
            f"{bytes_quantity(report.removed_hot_bytes)} in hot"
        )
    if report.cooled_blocks:
        said.append(f"moves {least}{bytes_quantity(report.cooled_bytes)} out of hot into cold only")
    return f"This {' and '.join(said)}, of {looked}. {_contexts(report)}"


def _contexts(report: DryRun) -> str:
    if not report.contexts:
        return "No context loses a block."
    lose = "1 context loses" if report.contexts == 1 else f"{report.contexts} contexts lose"
    used = report.contexts_used_24h
    return f"{lose} blocks, of which {used or 'none'} {'were' if used > 1 else 'was'} used today."


# Rules

RULE_INPUTS = tuple(BY_NAME[name] for name in ("hot_idle_s", "cold_ttl_s", "max_age_s", "priority"))


@dataclass(frozen=True)
class RuleRow:
    """`values`: (label, words) of what it replaces."""

    rule: RetentionRule
    condition: str
    values: list[tuple[str, str]]
    texts: dict[str, str]


def rule_rows(tenant: Tenant) -> list[RuleRow]:
    with tenant_scope(tenant.pk):
        return [_rule_row(rule) for rule in RetentionRule.objects.select_related("space")]


def _rule_row(rule: RetentionRule) -> RuleRow:
    parts = [f"space {rule.space.name}"] if rule.space is not None else []
    parts += [f"label {rule.label}"] if rule.label else []
    parts += [f"context {rule.context}"] if rule.context else []
    texts = {
        name: BY_NAME[name].write(value) if name in BY_NAME else str(value)
        for name, value in rule.overrides.items()
    }
    values = [(BY_NAME[name].label, text) for name, text in texts.items() if name in BY_NAME]
    return RuleRow(rule, ", ".join(parts), values, texts)


def rule_fields(tenant: Tenant, typed: Mapping[str, str]) -> dict[str, Any]:
    """Fields of a rule out of the form `r_…`. Raises ValidationError that names the field."""
    fields: dict[str, Any] = {
        "label": typed.get("r_label", "").strip(),
        "context": typed.get("r_context", "").strip(),
        "space": _space(tenant, typed.get("r_space", "")),
    }
    overrides: dict[str, Any] = {}
    for each in RULE_INPUTS:
        text = typed.get(f"r_{each.name}", "").strip()
        if not text:
            continue  # as the policy has it
        try:
            overrides[each.name] = each.read(text)
        except ValueError as error:
            raise ValidationError({each.name: f"{each.label}: {error}"}) from error
    return {**fields, "overrides": overrides}


def rules_with(tenant: Tenant, fields: dict[str, Any] | None, without: int | None) -> list[Any]:
    """All rules as they would be: one more, or one less."""
    with tenant_scope(tenant.pk):
        rows = [
            {
                name: getattr(rule, name)
                for name in ("space", "label", "context", "order", "overrides")
            }
            for rule in RetentionRule.objects.select_related("space")
            if rule.pk != without
        ]
    return [*rows, fields] if fields is not None else rows


def _space(tenant: Tenant, text: str) -> Any:
    if not text:
        return None
    with tenant_scope(tenant.pk):
        space = (
            Space.objects.filter(pk=text).first() if text.isdecimal() and len(text) < 19 else None
        )
    if space is None:
        raise ValidationError({"space": "There is no such space."})
    return space
