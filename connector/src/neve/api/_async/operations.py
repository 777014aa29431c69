"""Operations by resource. Made by `make openapi` from docs/openapi.json: do not edit."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from neve.api import models
from neve.api._async.paging import AsyncPages
from neve.api._async.resource import AsyncResource
from neve.api._async.transport import AsyncTransport
from neve.api.values import OMIT, Duration, Id, Labels, Moment, Omit, members, path_part


class AsyncAlertRules(AsyncResource):
    """Operations on alert rules."""

    async def reset(self, kind: Id, *, tenant: str | None = None) -> models.AlertRule:
        """Removes what was set: the rule behind it is in force again.

        Args:
            tenant: slug; of all tenants unless given
        """
        return await self._transport.call(
            "DELETE", f"/alert-rules/{path_part(kind)}", models.AlertRule, query={"tenant": tenant}
        )

    async def change(
        self,
        kind: Id,
        *,
        tenant: str | None = None,
        threshold: float | None = None,
        for_s: int | None = None,
        is_on: bool | None = None,
    ) -> models.AlertRule:
        """Sets a rule for a tenant, or for all that have none of their own.

        Args:
            tenant: slug; of all tenants unless given
            threshold: in the rule's unit, within its bounds
        """
        return await self._transport.call(
            "PATCH",
            f"/alert-rules/{path_part(kind)}",
            models.AlertRule,
            query={"tenant": tenant},
            body=members({"threshold": threshold, "for_s": for_s, "is_on": is_on}),
        )

    async def list(self, *, tenant: str | None = None) -> Any:
        """The rules in force for a tenant, or those of all tenants.

        Args:
            tenant: slug; of all tenants unless given
        """
        return await self._transport.call_for_json("GET", "/alert-rules", query={"tenant": tenant})


class AsyncAudit(AsyncResource):
    """Operations on audit."""

    def export(
        self,
        *,
        action: str | None = None,
        actor: str | None = None,
        address: str | None = None,
        format: str | None = None,
        from_: Moment | None = None,
        key_id: int | None = None,
        object_id: str | None = None,
        object_type: str | None = None,
        tenant: str | None = None,
        to: Moment | None = None,
        ordering: str | None = None,
    ) -> AsyncIterator[str]:
        """All rows of the list as CSV or JSON Lines. Texts in CSV that a spreadsheet would take
        for formulas begin with an apostrophe.

        Args:
            action: such as key.issue, context.pin, login, login.fail
            format: csv unless Accept says otherwise
            from_: at or after
            key_id: number of the caller's key
            tenant: slug of the tenant
            to: before
            ordering: sort key, - for descending; -at unless given. Rows that change while you
                walk the pages may be missed with a key that changes.
        """
        return self._transport.lines(
            "/audit/export",
            query={
                "action": action,
                "actor": actor,
                "address": address,
                "format": format,
                "from": from_,
                "key_id": key_id,
                "object_id": object_id,
                "object_type": object_type,
                "tenant": tenant,
                "to": to,
                "ordering": ordering,
            },
        )

    async def get(self, id: Id) -> models.Audit:
        """Who changed what, and when. Operators also see who signed in, and wrong passwords."""
        return await self._transport.call("GET", f"/audit/{path_part(id)}", models.Audit)

    async def undo(self, id: Id) -> models.Audit:
        """Sets the values before a change of a tenant, its quota, policy or rules again. Blocks
        that left meanwhile stay away. Refused if a value was changed again since.
        """
        return await self._transport.call("POST", f"/audit/{path_part(id)}/undo", models.Audit)

    def list(
        self,
        *,
        action: str | None = None,
        actor: str | None = None,
        address: str | None = None,
        from_: Moment | None = None,
        key_id: int | None = None,
        object_id: str | None = None,
        object_type: str | None = None,
        ordering: str | None = None,
        page_size: int | None = None,
        tenant: str | None = None,
        to: Moment | None = None,
        total: bool | None = None,
    ) -> AsyncPages[models.Audit]:
        """Who changed what, and when. Operators also see who signed in, and wrong passwords.

        Args:
            action: such as key.issue, context.pin, login, login.fail
            from_: at or after
            key_id: number of the caller's key
            ordering: sort key, - for descending; -at unless given. Rows that change while you
                walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            tenant: slug of the tenant
            to: before
            total: true: count the rows of all pages
        """
        return AsyncPages(
            self._transport,
            "/audit",
            {
                "action": action,
                "actor": actor,
                "address": address,
                "from": from_,
                "key_id": key_id,
                "object_id": object_id,
                "object_type": object_type,
                "ordering": ordering,
                "page_size": page_size,
                "tenant": tenant,
                "to": to,
                "total": total,
            },
            models.Audit,
        )


class AsyncContexts(AsyncResource):
    """Operations on contexts."""

    async def create(
        self,
        *,
        space: int,
        name: str,
        tokens: Sequence[int] | None = None,
        text: str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
        add_special_tokens: bool | None = None,
        salt: str | None = None,
        label: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> models.Context:
        """Makes a context before any request. Its state says what of it is stored already; `warm`
        computes the rest. The platform keeps the token ids, sealed, until it is deleted.

        Args:
            space: number of the space
            name: as requests name it in kv_transfer_params
            tokens: as the engine's tokeniser makes them
            text: as the prompt of /v1/completions
            messages: as of /v1/chat/completions, of text alone
            tools: with messages
            chat_template_kwargs: with messages
            add_generation_prompt: with messages; default true
            continue_final_message: with messages; default false
            add_special_tokens: default: true with text, false with messages, as in vLLM
            salt: cache_salt of the requests
            label: what retention rules match
            labels: at most 16; a name has letters, digits and ._/- and begins with a letter
        """
        return await self._transport.call(
            "POST",
            "/contexts",
            models.Context,
            body=members(
                {
                    "space": space,
                    "name": name,
                    "tokens": tokens,
                    "text": text,
                    "messages": messages,
                    "tools": tools,
                    "chat_template_kwargs": chat_template_kwargs,
                    "add_generation_prompt": add_generation_prompt,
                    "continue_final_message": continue_final_message,
                    "add_special_tokens": add_special_tokens,
                    "salt": salt,
                    "label": label,
                    "labels": labels,
                }
            ),
        )

    async def bulk(self, *, token: Id) -> models.Job:
        """Starts the job of a preview: `detail` counts the contexts that it was done to, and
        refusals by reason. The same token again gets the same job.

        Args:
            token: of a preview
        """
        return await self._transport.call(
            "POST", "/contexts/bulk", models.Job, body=members({"token": token})
        )

    async def bulk_preview(
        self,
        *,
        action: str,
        filter: Mapping[str, Any],
        every: bool | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> models.Preview:
        """Chooses contexts by the list's filters and weighs them. Changes nothing; the token does
        the action to exactly these contexts, for 15 minutes and for you alone.

        Args:
            action: * `pin` - pin
                * `unpin` - unpin
                * `extend` - extend
                * `warm` - warm
                * `expire` - expire
                * `label` - label
                * `delete` - delete
            filter: the filters of the list of contexts, by name
            every: true: act on every context of the tenant; needed if no filter but tenant is
                given, and refused otherwise
            arguments: of the action, as in the body of the single one. pin: until or for,
                tier, reason; unpin: all; extend: for; expire: at; label: label, labels
        """
        return await self._transport.call(
            "POST",
            "/contexts/bulk/preview",
            models.Preview,
            body=members(
                {"action": action, "filter": filter, "every": every, "arguments": arguments}
            ),
        )

    def export(
        self,
        *,
        created_after: Moment | None = None,
        created_before: Moment | None = None,
        format: str | None = None,
        glob: str | None = None,
        ids: str | None = None,
        label: str | None = None,
        labels: Labels | None = None,
        max_bytes: int | None = None,
        max_tokens: int | None = None,
        min_bytes: int | None = None,
        min_tokens: int | None = None,
        model: str | None = None,
        name: str | None = None,
        owner: str | None = None,
        pinned: bool | None = None,
        search: str | None = None,
        space: int | None = None,
        state: str | None = None,
        tenant: str | None = None,
        under: str | None = None,
        used_after: Moment | None = None,
        used_before: Moment | None = None,
        ordering: str | None = None,
    ) -> AsyncIterator[str]:
        """All rows of the list as CSV or JSON Lines. Texts in CSV that a spreadsheet would take
        for formulas begin with an apostrophe.

        Args:
            format: csv unless Accept says otherwise
            glob: pattern of the name, with * for any text, ? for any character and sets such
                as [0-9]; upper and lower case differ
            ids: these contexts: ids with commas, at most 200
            label: what retention rules match
            labels: labels that it has all of: team=blue,stage=test; a name alone: any value
            model: model of its space
            name: exact name
            owner: as `owner` shows it
            search: part of the name
            space: number of the space
            tenant: slug of the tenant
            under: unexpired ones with a beginning: the number of its ids in the chain, - and
                the last of these ids as 32 hex digits
            ordering: sort key, - for descending; -created_at unless given. Rows that change
                while you walk the pages may be missed with a key that changes.
        """
        return self._transport.lines(
            "/contexts/export",
            query={
                "created_after": created_after,
                "created_before": created_before,
                "format": format,
                "glob": glob,
                "ids": ids,
                "label": label,
                "labels": labels,
                "max_bytes": max_bytes,
                "max_tokens": max_tokens,
                "min_bytes": min_bytes,
                "min_tokens": min_tokens,
                "model": model,
                "name": name,
                "owner": owner,
                "pinned": pinned,
                "search": search,
                "space": space,
                "state": state,
                "tenant": tenant,
                "under": under,
                "used_after": used_after,
                "used_before": used_before,
                "ordering": ordering,
            },
        )

    async def delete(self, id: Id, *, etag: str | None = None) -> None:
        """Forgets the context and its pins. Its blocks stay for as long as other contexts that
        hold them say, or else their space.

        Args:
            etag: of the version that is changed; refused if it is older.
        """
        await self._transport.call_for_json("DELETE", f"/contexts/{path_part(id)}", etag=etag)

    async def get(self, id: Id, *, blocks: bool | None = None) -> models.ContextDetail:
        """The context with its pins and its residency: its hot, cold, lost and durable blocks.

        Args:
            blocks: list block by block
        """
        return await self._transport.call(
            "GET", f"/contexts/{path_part(id)}", models.ContextDetail, query={"blocks": blocks}
        )

    async def update(
        self,
        id: Id,
        *,
        name: str | None = None,
        label: str | None = None,
        labels: Mapping[str, str] | None = None,
        etag: str | None = None,
    ) -> models.Context:
        """Renames the context, or changes its label or labels. A request that still names the old
        name makes a new context.

        Args:
            name: once in its space
            label: what retention rules match
            labels: at most 16; a name has letters, digits and ._/- and begins with a letter
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "PATCH",
            f"/contexts/{path_part(id)}",
            models.Context,
            body=members({"name": name, "label": label, "labels": labels}),
            etag=etag,
        )

    async def diff(self, id: Id, *, with_: Id) -> models.Diff:
        """Compares this context with another: the beginning that they share, in tokens and
        blocks, and where they part. Blocks are shared only within one space.

        Args:
            with_: id of the other context
        """
        return await self._transport.call(
            "GET", f"/contexts/{path_part(id)}/diff", models.Diff, query={"with": with_}
        )

    async def expire(
        self,
        id: Id,
        *,
        dry_run: bool | None = None,
        at: Moment | Omit | None = OMIT,
        etag: str | None = None,
    ) -> models.Expired:
        """Removes the blocks from both tiers now or `at` a time, except those that another
        unexpired context holds. `dry_run` counts them and changes nothing.

        Args:
            dry_run: true: say what would go, change nothing
            at: not now but then, once no pin is left; null takes that back
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "POST",
            f"/contexts/{path_part(id)}/expire",
            models.Expired,
            body=members({"dry_run": dry_run}, nullable={"at": at}),
            etag=etag,
        )

    async def extend(
        self, id: Id, *, for_: Duration | None = None, etag: str | None = None
    ) -> models.Extended:
        """Extends the lifetime of the blocks: they end at that long from now at the earliest.

        Args:
            for_: counted from now: such as 90s, 30m, 2h, 7d, 1h30m, or ISO 8601: PT2H, P7D
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "POST",
            f"/contexts/{path_part(id)}/extend",
            models.Extended,
            body=members({"for": for_}),
            etag=etag,
        )

    async def pin(
        self,
        id: Id,
        *,
        for_: Duration | None = None,
        until: Moment | None = None,
        tier: str | None = None,
        reason: str | None = None,
        etag: str | None = None,
    ) -> models.Pinned:
        """Keeps the blocks until then, under any quota pressure. You have one pin on a context: a
        new one replaces it. The latest end of all pins counts. `tier` asks for copies in Valkey
        or in S3, which are made after the answer.

        Args:
            for_: counted from now: such as 90s, 30m, 2h, 7d, 1h30m, or ISO 8601: PT2H, P7D
            tier: any: blocks stay where they are; hot: those in S3 only are copied into
                Valkey; durable: those in Valkey only are written to S3
                * `any` - Any
                * `hot` - Hot
                * `durable` - Durable
            reason: shown to others
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "POST",
            f"/contexts/{path_part(id)}/pin",
            models.Pinned,
            body=members({"for": for_, "until": until, "tier": tier, "reason": reason}),
            etag=etag,
        )

    async def residency(self, id: Id, *, blocks: bool | None = None) -> models.ResidencyRuns:
        """Where the context is stored: totals, and in runs of tokens.

        Args:
            blocks: list block by block
        """
        return await self._transport.call(
            "GET",
            f"/contexts/{path_part(id)}/residency",
            models.ResidencyRuns,
            query={"blocks": blocks},
        )

    async def unpin(
        self, id: Id, *, pin: int | None = None, all: bool | None = None, etag: str | None = None
    ) -> models.Unpinned:
        """Ends your pin; blocks that another pin keeps stay pinned.

        Args:
            pin: number of the pin
            all: those of everybody
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "POST",
            f"/contexts/{path_part(id)}/unpin",
            models.Unpinned,
            body=members({"pin": pin, "all": all}),
            etag=etag,
        )

    async def warm(
        self,
        id: Id,
        *,
        tokens: Sequence[int] | None = None,
        text: str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
        add_special_tokens: bool | None = None,
        salt: str | None = None,
        engine: int | None = None,
    ) -> models.Job:
        """Has an engine of the space compute the prompt, so that its blocks are stored. The job's
        `detail` has tokens stored, seconds of the engine and GPU-seconds. A job under way for
        this context is the answer to a further request.

        Args:
            tokens: as the engine's tokeniser makes them
            text: as the prompt of /v1/completions
            messages: as of /v1/chat/completions, of text alone
            tools: with messages
            chat_template_kwargs: with messages
            add_generation_prompt: with messages; default true
            continue_final_message: with messages; default false
            add_special_tokens: default: true with text, false with messages, as in vLLM
            salt: cache_salt of the requests
            engine: number of an engine; default: any healthy one
        """
        return await self._transport.call(
            "POST",
            f"/contexts/{path_part(id)}/warm",
            models.Job,
            body=members(
                {
                    "tokens": tokens,
                    "text": text,
                    "messages": messages,
                    "tools": tools,
                    "chat_template_kwargs": chat_template_kwargs,
                    "add_generation_prompt": add_generation_prompt,
                    "continue_final_message": continue_final_message,
                    "add_special_tokens": add_special_tokens,
                    "salt": salt,
                    "engine": engine,
                }
            ),
        )

    def list(
        self,
        *,
        created_after: Moment | None = None,
        created_before: Moment | None = None,
        glob: str | None = None,
        ids: str | None = None,
        label: str | None = None,
        labels: Labels | None = None,
        max_bytes: int | None = None,
        max_tokens: int | None = None,
        min_bytes: int | None = None,
        min_tokens: int | None = None,
        model: str | None = None,
        name: str | None = None,
        ordering: str | None = None,
        owner: str | None = None,
        page_size: int | None = None,
        pinned: bool | None = None,
        search: str | None = None,
        space: int | None = None,
        state: str | None = None,
        tenant: str | None = None,
        total: bool | None = None,
        under: str | None = None,
        used_after: Moment | None = None,
        used_before: Moment | None = None,
    ) -> AsyncPages[models.Context]:
        """Named chains of blocks.

        Args:
            glob: pattern of the name, with * for any text, ? for any character and sets such
                as [0-9]; upper and lower case differ
            ids: these contexts: ids with commas, at most 200
            label: what retention rules match
            labels: labels that it has all of: team=blue,stage=test; a name alone: any value
            model: model of its space
            name: exact name
            ordering: sort key, - for descending; -created_at unless given. Rows that change
                while you walk the pages may be missed with a key that changes.
            owner: as `owner` shows it
            page_size: rows of a page; 50 unless given
            search: part of the name
            space: number of the space
            tenant: slug of the tenant
            total: true: count the rows of all pages
            under: unexpired ones with a beginning: the number of its ids in the chain, - and
                the last of these ids as 32 hex digits
        """
        return AsyncPages(
            self._transport,
            "/contexts",
            {
                "created_after": created_after,
                "created_before": created_before,
                "glob": glob,
                "ids": ids,
                "label": label,
                "labels": labels,
                "max_bytes": max_bytes,
                "max_tokens": max_tokens,
                "min_bytes": min_bytes,
                "min_tokens": min_tokens,
                "model": model,
                "name": name,
                "ordering": ordering,
                "owner": owner,
                "page_size": page_size,
                "pinned": pinned,
                "search": search,
                "space": space,
                "state": state,
                "tenant": tenant,
                "total": total,
                "under": under,
                "used_after": used_after,
                "used_before": used_before,
            },
            models.Context,
        )


class AsyncDeliveries(AsyncResource):
    """Operations on deliveries."""

    async def get(self, webhook: Id, id: Id) -> models.Delivery:
        """What a webhook got, gets and did not get. Bodies of answers are not kept."""
        return await self._transport.call(
            "GET", f"/webhooks/{path_part(webhook)}/deliveries/{path_part(id)}", models.Delivery
        )

    async def retry(self, webhook: Id, id: Id) -> models.Delivery:
        """Delivers the event once more, whether it was delivered or not."""
        return await self._transport.call(
            "POST",
            f"/webhooks/{path_part(webhook)}/deliveries/{path_part(id)}/retry",
            models.Delivery,
        )

    def list(
        self,
        webhook: Id,
        *,
        ordering: str | None = None,
        page_size: int | None = None,
        state: str | None = None,
        total: bool | None = None,
    ) -> AsyncPages[models.Delivery]:
        """What a webhook got, gets and did not get. Bodies of answers are not kept.

        Args:
            ordering: sort key, - for descending; -created_at unless given. Rows that change
                while you walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            state: * `waiting` - Waiting
                * `delivered` - Delivered
                * `failed` - Failed
            total: true: count the rows of all pages
        """
        return AsyncPages(
            self._transport,
            f"/webhooks/{path_part(webhook)}/deliveries",
            {"ordering": ordering, "page_size": page_size, "state": state, "total": total},
            models.Delivery,
        )


class AsyncEngines(AsyncResource):
    """Operations on engines."""

    async def create(
        self,
        *,
        name: str,
        base_url: str,
        model: str,
        spaces: Sequence[int] | None = None,
        api_key: str | None = None,
        gpus: int | Omit | None = OMIT,
        is_prefill: bool | None = None,
        tenant: str | None = None,
    ) -> models.Engine:
        """Registers an engine and checks it at once: see `state` and `error` of the answer.

        Args:
            base_url: of the server, such as http://gpu-07.example:8000; operators allow
                address ranges
            model: the name under which it is served
            spaces: numbers of the spaces that it serves: of the same model and revision
            api_key: of the server; empty: none
            gpus: for the cost of warming; null: TP × PP of its space
            is_prefill: of a prefill pool: warm jobs go there first, and routers may take it
                for one
            tenant: slug; not needed with a key of one tenant
        """
        return await self._transport.call(
            "POST",
            "/engines",
            models.Engine,
            body=members(
                {
                    "name": name,
                    "base_url": base_url,
                    "model": model,
                    "spaces": spaces,
                    "api_key": api_key,
                    "is_prefill": is_prefill,
                    "tenant": tenant,
                },
                nullable={"gpus": gpus},
            ),
        )

    async def delete(self, id: Id, *, etag: str | None = None) -> None:
        """Removes a registered engine. An announced one goes with the session of its node.

        Args:
            etag: of the version that is changed; refused if it is older.
        """
        await self._transport.call_for_json("DELETE", f"/engines/{path_part(id)}", etag=etag)

    async def get(self, id: Id) -> models.Engine:
        """Servers of vLLM that tokenise and prefill for the tenant's spaces."""
        return await self._transport.call("GET", f"/engines/{path_part(id)}", models.Engine)

    async def update(
        self,
        id: Id,
        *,
        name: str | None = None,
        base_url: str | None = None,
        model: str | None = None,
        spaces: Sequence[int] | None = None,
        api_key: str | None = None,
        gpus: int | Omit | None = OMIT,
        is_prefill: bool | None = None,
        etag: str | None = None,
    ) -> models.Engine:
        """Changes a registered engine and checks it anew.

        Args:
            base_url: of the server, such as http://gpu-07.example:8000; operators allow
                address ranges
            model: the name under which it is served
            spaces: numbers of the spaces that it serves: of the same model and revision
            api_key: of the server; empty: none
            gpus: for the cost of warming; null: TP × PP of its space
            is_prefill: of a prefill pool: warm jobs go there first, and routers may take it
                for one
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "PATCH",
            f"/engines/{path_part(id)}",
            models.Engine,
            body=members(
                {
                    "name": name,
                    "base_url": base_url,
                    "model": model,
                    "spaces": spaces,
                    "api_key": api_key,
                    "is_prefill": is_prefill,
                },
                nullable={"gpus": gpus},
            ),
            etag=etag,
        )

    async def check(self, id: Id) -> models.Engine:
        """Asks the engine now whether it serves its model."""
        return await self._transport.call("POST", f"/engines/{path_part(id)}/check", models.Engine)

    def list(
        self,
        *,
        is_prefill: bool | None = None,
        name: str | None = None,
        ordering: str | None = None,
        page_size: int | None = None,
        source: str | None = None,
        space: int | None = None,
        state: str | None = None,
        tenant: str | None = None,
        total: bool | None = None,
    ) -> AsyncPages[models.Engine]:
        """Servers of vLLM that tokenise and prefill for the tenant's spaces.

        Args:
            ordering: sort key, - for descending; -created_at unless given. Rows that change
                while you walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            source: * `registered` - registered
                * `announced` - announced
            space: number of a space
            state: * `unknown` - unknown
                * `healthy` - healthy
                * `unhealthy` - unhealthy
            tenant: slug of the tenant
            total: true: count the rows of all pages
        """
        return AsyncPages(
            self._transport,
            "/engines",
            {
                "is_prefill": is_prefill,
                "name": name,
                "ordering": ordering,
                "page_size": page_size,
                "source": source,
                "space": space,
                "state": state,
                "tenant": tenant,
                "total": total,
            },
            models.Engine,
        )


class AsyncEvents(AsyncResource):
    """Operations on events."""

    async def get(self, id: Id) -> models.Event:
        """What happened to contexts, nodes, jobs, quotas and policies, in one order for all
        readers.
        """
        return await self._transport.call("GET", f"/events/{path_part(id)}", models.Event)

    def list(
        self,
        *,
        after: int | None = None,
        ordering: str | None = None,
        page_size: int | None = None,
        subject: str | None = None,
        tenant: str | None = None,
        total: bool | None = None,
        types: str | Sequence[str] | None = None,
    ) -> AsyncPages[models.Event]:
        """A page of events, newest first; with `Accept: text/event-stream` a stream of new ones.
        A stream without `after` and Last-Event-ID begins now. Answers 410 if events behind the
        given number are not kept any more.

        Args:
            after: sequence: only events behind this one
            ordering: sort key, - for descending; -sequence unless given. Rows that change
                while you walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            subject: id of the object
            tenant: slug of the tenant
            total: true: count the rows of all pages
            types: types or patterns: node.down,context.*
        """
        return AsyncPages(
            self._transport,
            "/events",
            {
                "after": after,
                "ordering": ordering,
                "page_size": page_size,
                "subject": subject,
                "tenant": tenant,
                "total": total,
                "types": types,
            },
            models.Event,
        )


class AsyncExplore(AsyncResource):
    """Operations on explore."""

    async def get(
        self,
        *,
        against: str | None = None,
        from_: Moment | None = None,
        label: str | None = None,
        measure: str | None = None,
        node: str | None = None,
        range: str | None = None,
        space: int | None = None,
        split: str | None = None,
        tenant: str | None = None,
        to: Moment | None = None,
    ) -> models.Explore:
        """A measure by its parts: what changed most first, and what people and nodes changed.

        Args:
            against: before
            from_: in place of range: the beginning
            label: a context's label, or name:text
            measure: hit_rate
            node: host
            range: 15m without `from`
            space: id
            split: tenant
            tenant: slug; absent: all that you may see
            to: with `from`: the end; now unless given
        """
        return await self._transport.call(
            "GET",
            "/explore",
            models.Explore,
            query={
                "against": against,
                "from": from_,
                "label": label,
                "measure": measure,
                "node": node,
                "range": range,
                "space": space,
                "split": split,
                "tenant": tenant,
                "to": to,
            },
        )


class AsyncFamilies(AsyncResource):
    """Operations on families."""

    async def create(self, *, tenant: str, name: str, space: int) -> models.Family:
        """Lets other models share the KV of a space, once their engines have proven it equal.

        Args:
            tenant: slug
            space: number of the producer's space
        """
        return await self._transport.call(
            "POST",
            "/families",
            models.Family,
            body=members({"tenant": tenant, "name": name, "space": space}),
        )

    async def delete(self, id: Id, *, etag: str | None = None) -> None:
        """Ends the members' sessions. The producer keeps its space and its KV.

        Args:
            etag: of the version that is changed; refused if it is older.
        """
        await self._transport.call_for_json("DELETE", f"/families/{path_part(id)}", etag=etag)

    async def get(self, id: Id) -> models.Family:
        """Spaces that several models share, since they compute the same bits."""
        return await self._transport.call("GET", f"/families/{path_part(id)}", models.Family)

    def list(
        self,
        *,
        name: str | None = None,
        ordering: str | None = None,
        page_size: int | None = None,
        tenant: str | None = None,
        total: bool | None = None,
    ) -> AsyncPages[models.Family]:
        """Spaces that several models share, since they compute the same bits.

        Args:
            ordering: sort key, - for descending; name unless given. Rows that change while
                you walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            tenant: slug of the tenant
            total: true: count the rows of all pages
        """
        return AsyncPages(
            self._transport,
            "/families",
            {
                "name": name,
                "ordering": ordering,
                "page_size": page_size,
                "tenant": tenant,
                "total": total,
            },
            models.Family,
        )


class AsyncFamilyMembers(AsyncResource):
    """Operations on family members."""

    async def get(self, id: Id) -> models.FamilyMember:
        """Models of families: whether their KV is the producer's, and what they loaded."""
        return await self._transport.call(
            "GET", f"/family-members/{path_part(id)}", models.FamilyMember
        )

    async def try_again(self, id: Id, *, etag: str | None = None) -> models.FamilyMember:
        """Forgets what was found of a member: its engines prove their KV anew.

        Args:
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "POST", f"/family-members/{path_part(id)}/try-again", models.FamilyMember, etag=etag
        )

    def list(
        self,
        *,
        family: int | None = None,
        ordering: str | None = None,
        page_size: int | None = None,
        state: str | None = None,
        tenant: str | None = None,
        total: bool | None = None,
    ) -> AsyncPages[models.FamilyMember]:
        """Models of families: whether their KV is the producer's, and what they loaded.

        Args:
            family: number of the family
            ordering: sort key, - for descending; -created_at unless given. Rows that change
                while you walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            state: * `producer` - producer
                * `attesting` - attesting
                * `attached` - attached
                * `refused` - refused
            tenant: slug of the tenant
            total: true: count the rows of all pages
        """
        return AsyncPages(
            self._transport,
            "/family-members",
            {
                "family": family,
                "ordering": ordering,
                "page_size": page_size,
                "state": state,
                "tenant": tenant,
                "total": total,
            },
            models.FamilyMember,
        )


class AsyncIncidentMail(AsyncResource):
    """Operations on incident mail."""

    async def get(self) -> models.Mail:
        """Whether you get mail."""
        return await self._transport.call("GET", "/incident-mail", models.Mail)

    async def update(self, *, wants: bool) -> models.Mail:
        """Switches mail on or off."""
        return await self._transport.call(
            "PATCH", "/incident-mail", models.Mail, body=members({"wants": wants})
        )


class AsyncIncidents(AsyncResource):
    """Operations on incidents."""

    async def get(self, id: Id) -> models.Incident:
        """What needs a person: cause, worst slice, lever. Ended ones are kept for 90 days."""
        return await self._transport.call("GET", f"/incidents/{path_part(id)}", models.Incident)

    async def update(self, id: Id, *, owner: str, etag: str | None = None) -> models.Incident:
        """Sets the owner: who looks after it. Team keys and members name people of the tenant.

        Args:
            owner: user name; empty: nobody
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "PATCH",
            f"/incidents/{path_part(id)}",
            models.Incident,
            body=members({"owner": owner}),
            etag=etag,
        )

    async def acknowledge(self, id: Id) -> models.Incident:
        """Says that you look after it: no more mail, and you own it unless somebody does."""
        return await self._transport.call(
            "POST", f"/incidents/{path_part(id)}/acknowledge", models.Incident
        )

    async def mute(self, id: Id, *, for_: Duration, etag: str | None = None) -> models.Incident:
        """Hides it from attention and mail for a while: from operators if one calls, else from
        the tenant's people.

        Args:
            for_: how long; also if it opens again: such as 90s, 30m, 2h, 7d, 1h30m, or ISO
                8601: PT2H, P7D
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "POST",
            f"/incidents/{path_part(id)}/mute",
            models.Incident,
            body=members({"for": for_}),
            etag=etag,
        )

    async def unmute(self, id: Id, *, etag: str | None = None) -> models.Incident:
        """Shows it again.

        Args:
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "POST", f"/incidents/{path_part(id)}/unmute", models.Incident, etag=etag
        )

    def list(
        self,
        *,
        kind: str | None = None,
        ordering: str | None = None,
        page_size: int | None = None,
        state: str | None = None,
        tenant: str | None = None,
        total: bool | None = None,
    ) -> AsyncPages[models.Incident]:
        """What needs a person: cause, worst slice, lever. Ended ones are kept for 90 days.

        Args:
            kind: * `hit_rate` - The hit rate of prompt tokens lies so many points below that
                of the 30 minutes before.
                * `refused` - So many percent of the blocks to store were refused by a full tier,
                over 5 minutes.
                * `dropped` - So many percent of the blocks to store were dropped by nodes, over 5
                minutes.
                * `load_p99` - The 99th percentile of loads is above so many milliseconds, over 5
                minutes.
                * `dirty_age` - The oldest block that is due to be flushed waits for so many
                seconds.
                * `breaker` - So many live nodes serve without Neve, because its servers failed.
                * `silent_node` - So many nodes sent no heartbeat and did not end their sessions.
                * `job_failures` - So many jobs failed in the last 15 minutes.
                * `clock_skew` - So many blocks were missed in 5 minutes because clocks of S3 and
                the platform differ.
                * `memory_promise` - Quotas promise more than the hot tier's memory, of which so
                many percent are used.
                * `store_away` - So many stores of `neve stores` do not answer. The default one is
                asked by the overview.
            ordering: sort key, - for descending; -opened_at unless given. Rows that change
                while you walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            state: * `open` - open
                * `ended` - ended
            tenant: slug of the tenant
            total: true: count the rows of all pages
        """
        return AsyncPages(
            self._transport,
            "/incidents",
            {
                "kind": kind,
                "ordering": ordering,
                "page_size": page_size,
                "state": state,
                "tenant": tenant,
                "total": total,
            },
            models.Incident,
        )


class AsyncInvitations(AsyncResource):
    """Operations on invitations."""

    async def create(self, *, tenant: str, email: str, role: str) -> models.MadeInvitation:
        """Invites a person by a link, which can be used once within three days.

        Args:
            tenant: slug
            role: * `viewer` - Viewer: reads
                * `team` - Team: pins, expires, extends
        """
        return await self._transport.call(
            "POST",
            "/invitations",
            models.MadeInvitation,
            body=members({"tenant": tenant, "email": email, "role": role}),
        )

    async def delete(self, id: Id, *, etag: str | None = None) -> None:
        """Revokes the link. An accepted invitation is refused: remove the member instead.

        Args:
            etag: of the version that is changed; refused if it is older.
        """
        await self._transport.call_for_json("DELETE", f"/invitations/{path_part(id)}", etag=etag)

    async def get(self, id: Id) -> models.Invitation:
        """Invitations, open and ended. Ended ones are kept for 30 days."""
        return await self._transport.call("GET", f"/invitations/{path_part(id)}", models.Invitation)

    def list(
        self,
        *,
        email: str | None = None,
        ordering: str | None = None,
        page_size: int | None = None,
        role: str | None = None,
        tenant: str | None = None,
        total: bool | None = None,
    ) -> AsyncPages[models.Invitation]:
        """Invitations, open and ended. Ended ones are kept for 30 days.

        Args:
            ordering: sort key, - for descending; -created_at unless given. Rows that change
                while you walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            role: * `viewer` - Viewer: reads
                * `team` - Team: pins, expires, extends
            tenant: slug of the tenant
            total: true: count the rows of all pages
        """
        return AsyncPages(
            self._transport,
            "/invitations",
            {
                "email": email,
                "ordering": ordering,
                "page_size": page_size,
                "role": role,
                "tenant": tenant,
                "total": total,
            },
            models.Invitation,
        )


class AsyncJobs(AsyncResource):
    """Operations on jobs."""

    async def create(self, *, kind: str, tenant: str | None = None) -> models.Job:
        """Requests a job of a worker, such as compacting a tenant now.

        Args:
            kind: * `rebuild_tenant` - Build one tenant's index again from segment footers.
                * `flush` - Write due blocks of the hot tier to S3.
                * `sweep` - Delete segments in which nothing is alive.
                * `compact` - Merge small, scattered or half dead segments.
                * `move` - Move segments between stores by rules; delete old places.
                * `expire` - Remove expired blocks, and idle ones from hot.
                * `retain` - Give stored blocks a changed policy's terms.
                * `rebuild_index` - Build the index of an emptied Valkey again from segment
                footers.
                * `reconcile` - Find and repair what crashes and hands left in Valkey, S3 and the
                database.
                * `prune` - Delete ended sessions, expired contexts and audit events that are
                older than their limits.
                * `recommend` - Compare changes of a tenant's quotas and policies, and recommend
                one or none.
            tenant: slug; kinds of the whole platform have none
        """
        return await self._transport.call(
            "POST", "/jobs", models.Job, body=members({"kind": kind, "tenant": tenant})
        )

    async def get(self, id: Id) -> models.Job:
        """Background work: found by periodic tasks, or requested.
        A key with the scope `contexts` alone sees the jobs of contexts that teams request.
        """
        return await self._transport.call("GET", f"/jobs/{path_part(id)}", models.Job)

    async def cancel(self, id: Id, *, etag: str | None = None) -> models.Job:
        """Ends a requested job: a waiting one now, a running one at its next step. Teams end jobs
        that teams request, such as warming a context.

        Args:
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "POST", f"/jobs/{path_part(id)}/cancel", models.Job, etag=etag
        )

    async def retry(self, id: Id, *, etag: str | None = None) -> models.Job:
        """Runs a failed or cancelled job again, if it was requested; teams as in `cancel`.

        Args:
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "POST", f"/jobs/{path_part(id)}/retry", models.Job, etag=etag
        )

    def list(
        self,
        *,
        kind: str | None = None,
        ordering: str | None = None,
        page_size: int | None = None,
        state: str | None = None,
        tenant: str | None = None,
        total: bool | None = None,
    ) -> AsyncPages[models.Job]:
        """Background work: found by periodic tasks, or requested.
        A key with the scope `contexts` alone sees the jobs of contexts that teams request.

        Args:
            ordering: sort key, - for descending; -created_at unless given. Rows that change
                while you walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            state: * `queued` - Queued
                * `running` - Running
                * `done` - Done
                * `failed` - Failed
                * `cancelled` - Cancelled
            tenant: slug of the tenant
            total: true: count the rows of all pages
        """
        return AsyncPages(
            self._transport,
            "/jobs",
            {
                "kind": kind,
                "ordering": ordering,
                "page_size": page_size,
                "state": state,
                "tenant": tenant,
                "total": total,
            },
            models.Job,
        )


class AsyncKeys(AsyncResource):
    """Operations on keys."""

    async def create(
        self,
        *,
        name: str,
        role: str,
        expires_at: Moment | Omit | None = OMIT,
        expires_in: Duration | None = None,
        tenant: str | Omit | None = OMIT,
        scopes: Sequence[str] | None = None,
    ) -> models.IssuedKey:
        """Issues a key. Only this answer holds the whole key; a repeated answer holds null.
        Operators issue any. Members of role `team`, and team keys with the scope `keys`, issue
        team keys of their tenant; a key issues none that can do more, or lives longer, than
        itself.

        Args:
            role: * `node` - Node
                * `team` - Team
                * `operator` - Operator
            expires_in: such as 90s, 30m, 2h, 7d, 1h30m, or ISO 8601: PT2H, P7D
            tenant: slug; null for an operator key; absent: your only tenant
            scopes: absent: read and write, and keys for an operator; `write` brings `read`; a
                node key has none
        """
        return await self._transport.call(
            "POST",
            "/keys",
            models.IssuedKey,
            body=members(
                {"name": name, "role": role, "expires_in": expires_in, "scopes": scopes},
                nullable={"expires_at": expires_at, "tenant": tenant},
            ),
        )

    async def get(self, id: Id) -> models.Key:
        """API keys, without their secrets."""
        return await self._transport.call("GET", f"/keys/{path_part(id)}", models.Key)

    async def revoke(
        self, id: Id, *, keep_made: bool | None = None, etag: str | None = None
    ) -> models.Key:
        """Refuses the key from now on, and the keys that it made.

        Args:
            keep_made: true: keys that this key made stay; else they end, too
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "POST",
            f"/keys/{path_part(id)}/revoke",
            models.Key,
            body=members({"keep_made": keep_made}),
            etag=etag,
        )

    async def rotate(
        self,
        id: Id,
        *,
        expires_at: Moment | Omit | None = OMIT,
        expires_in: Duration | None = None,
        overlap: Duration | None = None,
        etag: str | None = None,
    ) -> models.IssuedKey:
        """Issues a key with the same name, role and scopes, which owns the same pins; the old key
        ends after the overlap. Only this answer holds the whole key.

        Args:
            expires_in: such as 90s, 30m, 2h, 7d, 1h30m, or ISO 8601: PT2H, P7D
            overlap: how long the old key still works; 1h unless given: such as 90s, 30m, 2h,
                7d, 1h30m, or ISO 8601: PT2H, P7D
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "POST",
            f"/keys/{path_part(id)}/rotate",
            models.IssuedKey,
            body=members(
                {"expires_in": expires_in, "overlap": overlap}, nullable={"expires_at": expires_at}
            ),
            etag=etag,
        )

    def list(
        self,
        *,
        ordering: str | None = None,
        page_size: int | None = None,
        revoked: bool | None = None,
        role: str | None = None,
        tenant: str | None = None,
        total: bool | None = None,
    ) -> AsyncPages[models.Key]:
        """API keys, without their secrets.

        Args:
            ordering: sort key, - for descending; -created_at unless given. Rows that change
                while you walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            role: * `node` - Node
                * `team` - Team
                * `operator` - Operator
            tenant: slug of the tenant
            total: true: count the rows of all pages
        """
        return AsyncPages(
            self._transport,
            "/keys",
            {
                "ordering": ordering,
                "page_size": page_size,
                "revoked": revoked,
                "role": role,
                "tenant": tenant,
                "total": total,
            },
            models.Key,
        )


class AsyncMembers(AsyncResource):
    """Operations on members."""

    async def create(self, *, role: str, tenant: str, user: str) -> models.TenantMember:
        """Gives an account a role in a tenant.

        Args:
            role: * `viewer` - Viewer: reads
                * `team` - Team: pins, expires, extends
            tenant: slug
            user: user name or e-mail address of an account
        """
        return await self._transport.call(
            "POST",
            "/members",
            models.TenantMember,
            body=members({"role": role, "tenant": tenant, "user": user}),
        )

    async def delete(self, id: Id, *, etag: str | None = None) -> None:
        """Ends the person's access to the tenant. Keys that they made stay.

        Args:
            etag: of the version that is changed; refused if it is older.
        """
        await self._transport.call_for_json("DELETE", f"/members/{path_part(id)}", etag=etag)

    async def get(self, id: Id) -> models.TenantMember:
        """People's roles in tenants. Everybody sees those of their own tenants."""
        return await self._transport.call("GET", f"/members/{path_part(id)}", models.TenantMember)

    async def update(self, id: Id, *, role: str, etag: str | None = None) -> models.TenantMember:
        """Changes the role; it holds from the person's next request on.

        Args:
            role: * `viewer` - Viewer: reads
                * `team` - Team: pins, expires, extends
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "PATCH",
            f"/members/{path_part(id)}",
            models.TenantMember,
            body=members({"role": role}),
            etag=etag,
        )

    def list(
        self,
        *,
        ordering: str | None = None,
        page_size: int | None = None,
        role: str | None = None,
        tenant: str | None = None,
        total: bool | None = None,
        user: str | None = None,
    ) -> AsyncPages[models.TenantMember]:
        """People's roles in tenants. Everybody sees those of their own tenants.

        Args:
            ordering: sort key, - for descending; id unless given. Rows that change while you
                walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            role: * `viewer` - Viewer: reads
                * `team` - Team: pins, expires, extends
            tenant: slug of the tenant
            total: true: count the rows of all pages
            user: user name
        """
        return AsyncPages(
            self._transport,
            "/members",
            {
                "ordering": ordering,
                "page_size": page_size,
                "role": role,
                "tenant": tenant,
                "total": total,
                "user": user,
            },
            models.TenantMember,
        )


class AsyncMoveRules(AsyncResource):
    """Operations on move rules."""

    async def create(
        self,
        *,
        name: str,
        target: str,
        position: int | None = None,
        is_active: bool | None = None,
        source: str | Omit | None = OMIT,
        is_copy: bool | None = None,
        least_age_s: int | Omit | None = OMIT,
        least_idle_s: int | Omit | None = OMIT,
        least_heat: float | Omit | None = OMIT,
        payback_days: int | Omit | None = OMIT,
        tenant: str | Omit | None = OMIT,
    ) -> models.MoveRule:
        """Adds a rule. Add it inactive and ask for a dry run to see what it would do.

        Args:
            target: name of a store
            position: the rule with the smallest one decides
            source: name of a store; null: any other
            is_copy: the old place stays; else the segment moves
            least_age_s: written so long ago
            least_idle_s: no node asked for its address for so long
            least_heat: minutes in which a node asked for its address, halved every six hours
            payback_days: the cheaper place pays for the move within so many
            tenant: slug; null: all tenants
        """
        return await self._transport.call(
            "POST",
            "/move-rules",
            models.MoveRule,
            body=members(
                {
                    "name": name,
                    "target": target,
                    "position": position,
                    "is_active": is_active,
                    "is_copy": is_copy,
                },
                nullable={
                    "source": source,
                    "least_age_s": least_age_s,
                    "least_idle_s": least_idle_s,
                    "least_heat": least_heat,
                    "payback_days": payback_days,
                    "tenant": tenant,
                },
            ),
        )

    async def delete(self, id: Id, *, etag: str | None = None) -> None:
        """Removes a rule. Segments stay where they are; copies that only it kept leave.

        Args:
            etag: of the version that is changed; refused if it is older.
        """
        await self._transport.call_for_json("DELETE", f"/move-rules/{path_part(id)}", etag=etag)

    async def get(self, id: Id) -> models.MoveRule:
        """Which segments move, or are copied, to which store."""
        return await self._transport.call("GET", f"/move-rules/{path_part(id)}", models.MoveRule)

    async def update(
        self,
        id: Id,
        *,
        name: str | None = None,
        position: int | None = None,
        is_active: bool | None = None,
        source: str | Omit | None = OMIT,
        target: str | None = None,
        is_copy: bool | None = None,
        least_age_s: int | Omit | None = OMIT,
        least_idle_s: int | Omit | None = OMIT,
        least_heat: float | Omit | None = OMIT,
        payback_days: int | Omit | None = OMIT,
        etag: str | None = None,
    ) -> models.MoveRule:
        """Changes a rule.

        Args:
            position: the rule with the smallest one decides
            source: name of a store; null: any other
            target: name of a store
            is_copy: the old place stays; else the segment moves
            least_age_s: written so long ago
            least_idle_s: no node asked for its address for so long
            least_heat: minutes in which a node asked for its address, halved every six hours
            payback_days: the cheaper place pays for the move within so many
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "PATCH",
            f"/move-rules/{path_part(id)}",
            models.MoveRule,
            body=members(
                {
                    "name": name,
                    "position": position,
                    "is_active": is_active,
                    "target": target,
                    "is_copy": is_copy,
                },
                nullable={
                    "source": source,
                    "least_age_s": least_age_s,
                    "least_idle_s": least_idle_s,
                    "least_heat": least_heat,
                    "payback_days": payback_days,
                },
            ),
            etag=etag,
        )

    async def dry_run(self, id: Id) -> models.MoveDryRun:
        """Says what this rule alone would move now, with money. Moves nothing."""
        return await self._transport.call(
            "POST", f"/move-rules/{path_part(id)}/dry-run", models.MoveDryRun
        )

    def list(
        self,
        *,
        name: str | None = None,
        ordering: str | None = None,
        page_size: int | None = None,
        tenant: str | None = None,
        total: bool | None = None,
    ) -> AsyncPages[models.MoveRule]:
        """Which segments move, or are copied, to which store.

        Args:
            ordering: sort key, - for descending; position unless given. Rows that change
                while you walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            tenant: slug of the tenant
            total: true: count the rows of all pages
        """
        return AsyncPages(
            self._transport,
            "/move-rules",
            {
                "name": name,
                "ordering": ordering,
                "page_size": page_size,
                "tenant": tenant,
                "total": total,
            },
            models.MoveRule,
        )


class AsyncMoves(AsyncResource):
    """Operations on moves."""

    async def get(self, id: Id) -> models.Move:
        """Copies of segments in other stores: arriving, kept, or leaving after a move."""
        return await self._transport.call("GET", f"/moves/{path_part(id)}", models.Move)

    def list(
        self,
        *,
        ordering: str | None = None,
        page_size: int | None = None,
        segment: int | None = None,
        state: str | None = None,
        tenant: str | None = None,
        total: bool | None = None,
    ) -> AsyncPages[models.Move]:
        """Copies of segments in other stores: arriving, kept, or leaving after a move.

        Args:
            ordering: sort key, - for descending; -since unless given. Rows that change while
                you walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            state: * `arriving` - Arriving
                * `kept` - Kept
                * `leaving` - Leaving
                * `deleting` - Deleting
            tenant: slug of the tenant
            total: true: count the rows of all pages
        """
        return AsyncPages(
            self._transport,
            "/moves",
            {
                "ordering": ordering,
                "page_size": page_size,
                "segment": segment,
                "state": state,
                "tenant": tenant,
                "total": total,
            },
            models.Move,
        )


class AsyncNodes(AsyncResource):
    """Operations on nodes."""

    async def get(self, id: Id) -> models.Node:
        """Node sessions, present and past."""
        return await self._transport.call("GET", f"/nodes/{path_part(id)}", models.Node)

    async def end(self, id: Id, *, etag: str | None = None) -> models.Node:
        """Ends the session and its Valkey access at once; revoke the key to keep the node out.

        Args:
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "POST", f"/nodes/{path_part(id)}/end", models.Node, etag=etag
        )

    def list(
        self,
        *,
        live: bool | None = None,
        node: str | None = None,
        ordering: str | None = None,
        page_size: int | None = None,
        space: int | None = None,
        tenant: str | None = None,
        total: bool | None = None,
    ) -> AsyncPages[models.Node]:
        """Node sessions, present and past.

        Args:
            live: with young heartbeats
            ordering: sort key, - for descending; -opened_at unless given. Rows that change
                while you walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            tenant: slug of the tenant
            total: true: count the rows of all pages
        """
        return AsyncPages(
            self._transport,
            "/nodes",
            {
                "live": live,
                "node": node,
                "ordering": ordering,
                "page_size": page_size,
                "space": space,
                "tenant": tenant,
                "total": total,
            },
            models.Node,
        )


class AsyncPolicies(AsyncResource):
    """Operations on policies."""

    async def get(self, tenant: Id) -> models.Policy:
        """How long a tenant's blocks stay, and where, before any rule."""
        return await self._transport.call("GET", f"/policies/{path_part(tenant)}", models.Policy)

    async def update(
        self,
        tenant: Id,
        *,
        flush_mode: str | None = None,
        flush_after_s: int | Omit | None = OMIT,
        hot_idle_s: int | Omit | None = OMIT,
        cold_ttl_s: int | Omit | None = OMIT,
        max_age_s: int | Omit | None = OMIT,
        priority: int | None = None,
        pin_budget_bytes: int | Omit | None = OMIT,
        eviction: str | None = None,
        promote_window_s: int | None = None,
        cold_full: str | None = None,
        cold_codec: str | None = None,
        lossy_codecs: str | None = None,
        etag: str | None = None,
    ) -> models.Policy:
        """New blocks follow at once, stored ones within seconds: see `is_applied`.

        Args:
            flush_mode: * `now` - Flush as soon as committed
                * `after` - Flush after some seconds
                * `never` - Never flush: hot tier only
            priority: 0 leaves first
            eviction: who leaves a full hot tier first
                * `lru` - Least recently used
                * `2q` - Two queues: what nobody used again leaves first
            promote_window_s: a cold block read twice so close together becomes hot again; 0:
                never
            cold_full: when the cold quota is used up
                * `evict` - Make room: the longest unread leave
                * `refuse` - Refuse new blocks
            cold_codec: how blocks are written to S3, without loss; older nodes read no
                compressed ones
                * `none` - As they are
                * `auto` - Compressed where that makes reads faster
                * `always` - Compressed
            lossy_codecs: models whose nodes may store KV with loss, such as smollm*=int8,
                *=fp8
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "PATCH",
            f"/policies/{path_part(tenant)}",
            models.Policy,
            body=members(
                {
                    "flush_mode": flush_mode,
                    "priority": priority,
                    "eviction": eviction,
                    "promote_window_s": promote_window_s,
                    "cold_full": cold_full,
                    "cold_codec": cold_codec,
                    "lossy_codecs": lossy_codecs,
                },
                nullable={
                    "flush_after_s": flush_after_s,
                    "hot_idle_s": hot_idle_s,
                    "cold_ttl_s": cold_ttl_s,
                    "max_age_s": max_age_s,
                    "pin_budget_bytes": pin_budget_bytes,
                },
            ),
            etag=etag,
        )

    async def dry_run(
        self,
        tenant: Id,
        *,
        policy: Mapping[str, Any] | None = None,
        rules: Sequence[Mapping[str, Any]] | None = None,
    ) -> models.DryRun:
        """What a change would remove at once, without changing anything.

        Args:
            policy: Absent members keep their value; null is without limit.
            rules: absent: those there are
        """
        return await self._transport.call(
            "POST",
            f"/policies/{path_part(tenant)}/dry-run",
            models.DryRun,
            body=members({"policy": policy, "rules": rules}),
        )

    def list(
        self,
        *,
        ordering: str | None = None,
        page_size: int | None = None,
        tenant: str | None = None,
        total: bool | None = None,
    ) -> AsyncPages[models.Policy]:
        """How long a tenant's blocks stay, and where, before any rule.

        Args:
            ordering: sort key, - for descending; id unless given. Rows that change while you
                walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            tenant: slug of the tenant
            total: true: count the rows of all pages
        """
        return AsyncPages(
            self._transport,
            "/policies",
            {"ordering": ordering, "page_size": page_size, "tenant": tenant, "total": total},
            models.Policy,
        )


class AsyncPrices(AsyncResource):
    """Operations on prices."""

    async def get(self) -> models.Prices:
        """The prices of today, and of other times."""
        return await self._transport.call("GET", "/prices", models.Prices)

    async def update(
        self,
        *,
        valid_from: str | None = None,
        currency: str | None = None,
        gpu_hour: str | None = None,
        hot_gib_hour: str | None = None,
        cold_gib_month: str | None = None,
        put_1000: str | None = None,
        get_1000: str | None = None,
        egress_gb: str | None = None,
        etag: str | None = None,
    ) -> models.Prices:
        """Changes prices from a day on, until the next version's first day.

        Args:
            valid_from: first day, UTC; today unless given; from the first of this month to a
                year ahead: past months keep their prices
            currency: ISO 4217; changes on the first of a month only
            gpu_hour: one GPU for one hour
            hot_gib_hour: one GiB of the hot tier for one hour
            cold_gib_month: one GiB in the object store for one calendar month
            put_1000: 1,000 PUT, POST, COPY and LIST requests
            get_1000: 1,000 GET and HEAD requests
            egress_gb: 10^9 bytes read from the object store
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "PATCH",
            "/prices",
            models.Prices,
            body=members(
                {
                    "valid_from": valid_from,
                    "currency": currency,
                    "gpu_hour": gpu_hour,
                    "hot_gib_hour": hot_gib_hour,
                    "cold_gib_month": cold_gib_month,
                    "put_1000": put_1000,
                    "get_1000": get_1000,
                    "egress_gb": egress_gb,
                }
            ),
            etag=etag,
        )


class AsyncRules(AsyncResource):
    """Operations on rules."""

    async def create(
        self,
        *,
        overrides: Mapping[str, Any],
        tenant: str,
        space: int | Omit | None = OMIT,
        label: str | None = None,
        context: str | None = None,
        order: int | None = None,
    ) -> models.Rule:
        """Adds a rule. First ask a dry run of the policy what it would remove.

        Args:
            overrides: Fields of the policy that a rule replaces; null is without limit.
            tenant: slug
            space: number of the space
            context: a name, or a pattern: repo-*
            order: lower wins between equals
        """
        return await self._transport.call(
            "POST",
            "/rules",
            models.Rule,
            body=members(
                {
                    "overrides": overrides,
                    "tenant": tenant,
                    "label": label,
                    "context": context,
                    "order": order,
                },
                nullable={"space": space},
            ),
        )

    async def delete(self, id: Id, *, etag: str | None = None) -> None:
        """Removes a rule; its blocks follow the policy and the other rules.

        Args:
            etag: of the version that is changed; refused if it is older.
        """
        await self._transport.call_for_json("DELETE", f"/rules/{path_part(id)}", etag=etag)

    async def get(self, id: Id) -> models.Rule:
        """Other values for the blocks of a space, a label, or contexts by name."""
        return await self._transport.call("GET", f"/rules/{path_part(id)}", models.Rule)

    async def update(
        self,
        id: Id,
        *,
        space: int | Omit | None = OMIT,
        label: str | None = None,
        context: str | None = None,
        order: int | None = None,
        overrides: Mapping[str, Any] | None = None,
        etag: str | None = None,
    ) -> models.Rule:
        """Changes a rule.

        Args:
            space: number of the space
            context: a name, or a pattern: repo-*
            order: lower wins between equals
            overrides: Fields of the policy that a rule replaces; null is without limit.
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "PATCH",
            f"/rules/{path_part(id)}",
            models.Rule,
            body=members(
                {"label": label, "context": context, "order": order, "overrides": overrides},
                nullable={"space": space},
            ),
            etag=etag,
        )

    def list(
        self,
        *,
        label: str | None = None,
        ordering: str | None = None,
        page_size: int | None = None,
        space: int | None = None,
        tenant: str | None = None,
        total: bool | None = None,
    ) -> AsyncPages[models.Rule]:
        """Other values for the blocks of a space, a label, or contexts by name.

        Args:
            ordering: sort key, - for descending; id unless given. Rows that change while you
                walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            space: number of the space
            tenant: slug of the tenant
            total: true: count the rows of all pages
        """
        return AsyncPages(
            self._transport,
            "/rules",
            {
                "label": label,
                "ordering": ordering,
                "page_size": page_size,
                "space": space,
                "tenant": tenant,
                "total": total,
            },
            models.Rule,
        )


class AsyncSamples(AsyncResource):
    """Operations on samples."""

    async def get(self, *, tenant: str | None = None) -> models.Samples:
        """Whether traffic is sampled, at which rate, and what is stored.

        Args:
            tenant: slug; needed if you see several
        """
        return await self._transport.call(
            "GET", "/samples", models.Samples, query={"tenant": tenant}
        )

    async def update(self, *, tenant: str | None = None, enabled: bool) -> models.Samples:
        """Switches samples on or off. Off: stored ones are deleted within an hour.

        Args:
            tenant: slug; needed if you see several
            enabled: false: nodes send no samples, and stored ones are deleted
        """
        return await self._transport.call(
            "PATCH",
            "/samples",
            models.Samples,
            query={"tenant": tenant},
            body=members({"enabled": enabled}),
        )

    def export(
        self, *, from_: Moment | None = None, tenant: str | None = None, to: Moment | None = None
    ) -> AsyncIterator[str]:
        """A trace that `neve simulate` reads: keyed ids, places and times, and exact totals. Of a
        window with more than 64 MiB, the latest part; of more than 600,000 reads, a lower rate.

        Args:
            from_: the beginning; 24 hours ago
            tenant: slug; needed if you see several
            to: the end; now
        """
        return self._transport.lines(
            "/samples/export", query={"from": from_, "tenant": tenant, "to": to}
        )


class AsyncSavings(AsyncResource):
    """Operations on savings."""

    async def get(
        self,
        *,
        by: str | None = None,
        month: str | None = None,
        months: int | None = None,
        tenant: str | None = None,
    ) -> models.Savings:
        """Money by tenant or space and month, with the formula and each of its inputs.

        Args:
            by: tenant unless given
            month: of UTC, such as 2026-11; absent: this one
            months: so many months that end with `month`; 1 unless given
            tenant: slug; absent: all that you may see
        """
        return await self._transport.call(
            "GET",
            "/savings",
            models.Savings,
            query={"by": by, "month": month, "months": months, "tenant": tenant},
        )

    def export(
        self,
        *,
        by: str | None = None,
        format: str | None = None,
        month: str | None = None,
        months: int | None = None,
        tenant: str | None = None,
    ) -> AsyncIterator[str]:
        """All rows as CSV or JSON Lines. Amounts are decimals; costs are positive.

        Args:
            by: tenant unless given
            format: csv unless Accept says otherwise
            month: of UTC, such as 2026-11; absent: this one
            months: so many months that end with `month`; 1 unless given
            tenant: slug; absent: all that you may see
        """
        return self._transport.lines(
            "/savings/export",
            query={"by": by, "format": format, "month": month, "months": months, "tenant": tenant},
        )


class AsyncSegments(AsyncResource):
    """Operations on segments."""

    async def get(self, id: Id) -> models.Segment:
        """S3 objects full of blocks."""
        return await self._transport.call("GET", f"/segments/{path_part(id)}", models.Segment)

    def list(
        self,
        *,
        ordering: str | None = None,
        page_size: int | None = None,
        space: int | None = None,
        state: str | None = None,
        tenant: str | None = None,
        total: bool | None = None,
    ) -> AsyncPages[models.Segment]:
        """S3 objects full of blocks.

        Args:
            ordering: sort key, - for descending; -id unless given. Rows that change while you
                walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            state: * `uploading` - Uploading
                * `live` - Live
                * `deleting` - Deleting
            tenant: slug of the tenant
            total: true: count the rows of all pages
        """
        return AsyncPages(
            self._transport,
            "/segments",
            {
                "ordering": ordering,
                "page_size": page_size,
                "space": space,
                "state": state,
                "tenant": tenant,
                "total": total,
            },
            models.Segment,
        )


class AsyncSignIns(AsyncResource):
    """Operations on sign ins."""

    async def delete(self, id: Id, *, etag: str | None = None) -> None:
        """Ends the session: its next request is signed out, and its open pages are told.

        Args:
            etag: of the version that is changed; refused if it is older.
        """
        await self._transport.call_for_json("DELETE", f"/sign-ins/{path_part(id)}", etag=etag)

    async def get(self, id: Id) -> models.SignIn:
        """Browser sessions: a person's own; everybody's for operators; none for keys of teams."""
        return await self._transport.call("GET", f"/sign-ins/{path_part(id)}", models.SignIn)

    def list(
        self,
        *,
        address: str | None = None,
        ordering: str | None = None,
        page_size: int | None = None,
        total: bool | None = None,
        user: str | None = None,
    ) -> AsyncPages[models.SignIn]:
        """Browser sessions: a person's own; everybody's for operators; none for keys of teams.

        Args:
            ordering: sort key, - for descending; -created_at unless given. Rows that change
                while you walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            total: true: count the rows of all pages
            user: user name
        """
        return AsyncPages(
            self._transport,
            "/sign-ins",
            {
                "address": address,
                "ordering": ordering,
                "page_size": page_size,
                "total": total,
                "user": user,
            },
            models.SignIn,
        )


class AsyncSpaces(AsyncResource):
    """Operations on spaces."""

    async def delete(
        self, id: Id, *, confirm: str | None = None, etag: str | None = None
    ) -> models.Removal:
        """Ends the space's sessions at once; its data is deleted within minutes.

        Args:
            confirm: the name; without it the answer says what would be removed
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "DELETE",
            f"/spaces/{path_part(id)}",
            models.Removal,
            query={"confirm": confirm},
            etag=etag,
        )

    async def get(self, id: Id) -> models.SpaceDetail:
        """A space, with what its nodes measured of loading and computing."""
        return await self._transport.call("GET", f"/spaces/{path_part(id)}", models.SpaceDetail)

    async def compare(self, id: Id, *, with_: int) -> models.Comparison:
        """Says in which fields of the layout two spaces differ, and what to set on the engine so
        that both share KV.

        Args:
            with_: the other space
        """
        return await self._transport.call(
            "GET", f"/spaces/{path_part(id)}/compare", models.Comparison, query={"with": with_}
        )

    async def lineage(
        self,
        id: Id,
        *,
        depth: int | None = None,
        limit: int | None = None,
        min_tokens: int | None = None,
    ) -> models.LineageNode:
        """The tree of the beginnings that the unexpired contexts of this space share, such as a
        common system prompt. It is bounded; `more` says where it was cut.

        Args:
            depth: levels below the root
            limit: nodes below the root, those of the most contexts first
            min_tokens: leave out beginnings of fewer tokens
        """
        return await self._transport.call(
            "GET",
            f"/spaces/{path_part(id)}/lineage",
            models.LineageNode,
            query={"depth": depth, "limit": limit, "min_tokens": min_tokens},
        )

    async def removals(self, id: Id, *, after: str | None = None) -> models.Removals:
        """Which blocks of the space left both tiers behind a cursor: by quota, age, deletion or
        damage. Without a cursor the answer is empty, and its cursor is now.
        With `Accept: text/event-stream` a stream: events `removals` with `{"removed": [...]}`,
        and `reset` when earlier removals are not all known any more.

        Args:
            after: `cursor` of the last answer; none: now
        """
        return await self._transport.call(
            "GET", f"/spaces/{path_part(id)}/removals", models.Removals, query={"after": after}
        )

    def list(
        self,
        *,
        fingerprint: str | None = None,
        model: str | None = None,
        name: str | None = None,
        ordering: str | None = None,
        page_size: int | None = None,
        tenant: str | None = None,
        total: bool | None = None,
    ) -> AsyncPages[models.Space]:
        """KV layouts.

        Args:
            model: as `identity` names it
            ordering: sort key, - for descending; -created_at unless given. Rows that change
                while you walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            tenant: slug of the tenant
            total: true: count the rows of all pages
        """
        return AsyncPages(
            self._transport,
            "/spaces",
            {
                "fingerprint": fingerprint,
                "model": model,
                "name": name,
                "ordering": ordering,
                "page_size": page_size,
                "tenant": tenant,
                "total": total,
            },
            models.Space,
        )


class AsyncStores(AsyncResource):
    """Operations on stores."""

    async def create(
        self,
        *,
        endpoint: str,
        bucket: str,
        name: str,
        region: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        credentials_env: str | None = None,
        storage_class: str | None = None,
        priority: int | None = None,
        move_bytes_per_s: int | None = None,
        gib_month: str | Omit | None = OMIT,
        put_1000: str | Omit | None = OMIT,
        get_1000: str | Omit | None = OMIT,
        egress_gb: str | Omit | None = OMIT,
    ) -> models.Store:
        """Adds a store, after an object was written, read and deleted there.

        Args:
            endpoint: such as https://s3.example
            bucket: exists already; a store of its own
            name: a to z, digits, hyphens; nodes name near stores by it
            secret_key: sealed, and never shown
            credentials_env: in place of keys: NEVE_STORE_NVME reads
                NEVE_STORE_NVME_ACCESS_KEY and NEVE_STORE_NVME_SECRET_KEY of the environment of
                web and workers
            storage_class: such as STANDARD_IA
            priority: readers take the smallest; the default has 100
            move_bytes_per_s: bound of moves into it
            gib_month: one GiB for one calendar month; empty: the platform's price
            put_1000: 1,000 PUT, POST, COPY and LIST requests; empty: the platform's price
            get_1000: 1,000 GET and HEAD requests; empty: the platform's price
            egress_gb: 10^9 bytes read; empty: the platform's price
        """
        return await self._transport.call(
            "POST",
            "/stores",
            models.Store,
            body=members(
                {
                    "endpoint": endpoint,
                    "bucket": bucket,
                    "name": name,
                    "region": region,
                    "access_key": access_key,
                    "secret_key": secret_key,
                    "credentials_env": credentials_env,
                    "storage_class": storage_class,
                    "priority": priority,
                    "move_bytes_per_s": move_bytes_per_s,
                },
                nullable={
                    "gib_month": gib_month,
                    "put_1000": put_1000,
                    "get_1000": get_1000,
                    "egress_gb": egress_gb,
                },
            ),
        )

    async def delete(
        self, id: Id, *, confirm: str | None = None, etag: str | None = None
    ) -> models.RemovedStore:
        """Removes a store, and the rules that name it. Deletes nothing there: of segments that
        have no copy elsewhere the blocks become misses, so move them by a rule first. The answer
        says how many segments were given up, and which rules are gone.

        Args:
            confirm: the name; without it the answer says what would be removed
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "DELETE",
            f"/stores/{path_part(id)}",
            models.RemovedStore,
            query={"confirm": confirm},
            etag=etag,
        )

    async def get(self, id: Id) -> models.Store:
        """S3 buckets that hold segments."""
        return await self._transport.call("GET", f"/stores/{path_part(id)}", models.Store)

    async def update(
        self,
        id: Id,
        *,
        endpoint: str | None = None,
        bucket: str | None = None,
        region: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        credentials_env: str | None = None,
        storage_class: str | None = None,
        priority: int | None = None,
        move_bytes_per_s: int | None = None,
        gib_month: str | Omit | None = OMIT,
        put_1000: str | Omit | None = OMIT,
        get_1000: str | Omit | None = OMIT,
        egress_gb: str | Omit | None = OMIT,
        etag: str | None = None,
    ) -> models.Store:
        """Changes a store. One that holds segments keeps endpoint and bucket.

        Args:
            endpoint: such as https://s3.example
            bucket: exists already; a store of its own
            secret_key: sealed, and never shown
            credentials_env: in place of keys: NEVE_STORE_NVME reads
                NEVE_STORE_NVME_ACCESS_KEY and NEVE_STORE_NVME_SECRET_KEY of the environment of
                web and workers
            storage_class: such as STANDARD_IA
            priority: readers take the smallest; the default has 100
            move_bytes_per_s: bound of moves into it
            gib_month: one GiB for one calendar month; empty: the platform's price
            put_1000: 1,000 PUT, POST, COPY and LIST requests; empty: the platform's price
            get_1000: 1,000 GET and HEAD requests; empty: the platform's price
            egress_gb: 10^9 bytes read; empty: the platform's price
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "PATCH",
            f"/stores/{path_part(id)}",
            models.Store,
            body=members(
                {
                    "endpoint": endpoint,
                    "bucket": bucket,
                    "region": region,
                    "access_key": access_key,
                    "secret_key": secret_key,
                    "credentials_env": credentials_env,
                    "storage_class": storage_class,
                    "priority": priority,
                    "move_bytes_per_s": move_bytes_per_s,
                },
                nullable={
                    "gib_month": gib_month,
                    "put_1000": put_1000,
                    "get_1000": get_1000,
                    "egress_gb": egress_gb,
                },
            ),
            etag=etag,
        )

    def list(
        self,
        *,
        name: str | None = None,
        ordering: str | None = None,
        page_size: int | None = None,
        total: bool | None = None,
    ) -> AsyncPages[models.Store]:
        """S3 buckets that hold segments.

        Args:
            ordering: sort key, - for descending; priority unless given. Rows that change
                while you walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            total: true: count the rows of all pages
        """
        return AsyncPages(
            self._transport,
            "/stores",
            {"name": name, "ordering": ordering, "page_size": page_size, "total": total},
            models.Store,
        )


class AsyncTenants(AsyncResource):
    """Operations on tenants."""

    async def create(
        self,
        *,
        slug: str,
        name: str,
        node_limit: int | None = None,
        is_active: bool | None = None,
        quota: Mapping[str, Any] | None = None,
    ) -> models.Tenant:
        """Makes a tenant with its quota and its policy.

        Args:
            slug: its name in addresses, which stays: a to z, digits, hyphens; not `all`
            node_limit: 16 unless given
            quota: 1 GiB hot, or half of the room that is left, and 16 GiB cold
        """
        return await self._transport.call(
            "POST",
            "/tenants",
            models.Tenant,
            body=members(
                {
                    "slug": slug,
                    "name": name,
                    "node_limit": node_limit,
                    "is_active": is_active,
                    "quota": quota,
                }
            ),
        )

    async def delete(
        self, slug: Id, *, confirm: str | None = None, etag: str | None = None
    ) -> models.Removal:
        """Cuts the tenant off at once; its data is deleted within minutes.

        Args:
            confirm: the name; without it the answer says what would be removed
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "DELETE",
            f"/tenants/{path_part(slug)}",
            models.Removal,
            query={"confirm": confirm},
            etag=etag,
        )

    async def get(self, slug: Id) -> models.Tenant:
        """Tenants, for operators; everybody reads the quota of their own."""
        return await self._transport.call("GET", f"/tenants/{path_part(slug)}", models.Tenant)

    async def update(
        self,
        slug: Id,
        *,
        name: str | None = None,
        node_limit: int | None = None,
        is_active: bool | None = None,
        samples_enabled: bool | None = None,
        overcommit: bool | None = None,
        etag: str | None = None,
    ) -> models.Tenant:
        """Changes the tenant. An inactive one's keys, sessions and Valkey users end at once; its
        data stays, and its people see it no more, until it is active again.

        Args:
            is_active: false: keys, sessions and Valkey users end at once; data stays
            samples_enabled: false: nodes send no samples, and stored ones are deleted
            overcommit: activate, though the hot quota does not fit; default false
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "PATCH",
            f"/tenants/{path_part(slug)}",
            models.Tenant,
            body=members(
                {
                    "name": name,
                    "node_limit": node_limit,
                    "is_active": is_active,
                    "samples_enabled": samples_enabled,
                    "overcommit": overcommit,
                }
            ),
            etag=etag,
        )

    async def let_in(self, slug: Id, *, etag: str | None = None) -> models.Tenant:
        """Lets a tenant's nodes in again that were cut off for harming others.

        Args:
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "POST", f"/tenants/{path_part(slug)}/let-in", models.Tenant, etag=etag
        )

    async def quota(self, slug: Id) -> models.OwnQuota:
        """The limits of a tenant, and what it uses of them now."""
        return await self._transport.call(
            "GET", f"/tenants/{path_part(slug)}/quota", models.OwnQuota
        )

    async def set_quota(
        self,
        slug: Id,
        *,
        hot_bytes: int | None = None,
        cold_bytes: int | None = None,
        overcommit: bool | None = None,
        space_limit: int | Omit | None = OMIT,
        context_limit: int | Omit | None = OMIT,
        context_block_limit: int | Omit | None = OMIT,
        etag: str | None = None,
    ) -> models.Quota:
        """Sets hard limits. All hot quotas together must fit the hot tier's memory.

        Args:
            overcommit: promise more hot memory than the servers have; default false
            space_limit: spaces; null: the default
            context_limit: contexts; null: the default
            context_block_limit: blocks of one context; null: the default
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "PATCH",
            f"/tenants/{path_part(slug)}/quota",
            models.Quota,
            body=members(
                {"hot_bytes": hot_bytes, "cold_bytes": cold_bytes, "overcommit": overcommit},
                nullable={
                    "space_limit": space_limit,
                    "context_limit": context_limit,
                    "context_block_limit": context_block_limit,
                },
            ),
            etag=etag,
        )

    def list(
        self,
        *,
        is_active: bool | None = None,
        ordering: str | None = None,
        page_size: int | None = None,
        slug: str | None = None,
        total: bool | None = None,
    ) -> AsyncPages[models.Tenant]:
        """Tenants, for operators; everybody reads the quota of their own.

        Args:
            ordering: sort key, - for descending; slug unless given. Rows that change while
                you walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            total: true: count the rows of all pages
        """
        return AsyncPages(
            self._transport,
            "/tenants",
            {
                "is_active": is_active,
                "ordering": ordering,
                "page_size": page_size,
                "slug": slug,
                "total": total,
            },
            models.Tenant,
        )


class AsyncWarmPolicies(AsyncResource):
    """Operations on warm policies."""

    async def create(
        self,
        *,
        context: Id,
        mode: str,
        cron: str | None = None,
        time_zone: str | None = None,
        engine: int | Omit | None = OMIT,
        is_paused: bool | None = None,
    ) -> models.WarmPolicy:
        """Adds a policy. After five failures in a row it pauses itself, and `error` says why.

        Args:
            context: id of a context whose tokens the platform has
            mode: schedule: by the clock; keep: again whenever blocks are lost
                * `schedule` - Schedule
                * `keep` - Keep
            cron: five fields, with a schedule: 30 7 * * 1-5
            time_zone: such as Europe/Berlin
            engine: null: any healthy one
        """
        return await self._transport.call(
            "POST",
            "/warm-policies",
            models.WarmPolicy,
            body=members(
                {
                    "context": context,
                    "mode": mode,
                    "cron": cron,
                    "time_zone": time_zone,
                    "is_paused": is_paused,
                },
                nullable={"engine": engine},
            ),
        )

    async def delete(self, id: Id, *, etag: str | None = None) -> None:
        """Removes a policy. Jobs under way go on.

        Args:
            etag: of the version that is changed; refused if it is older.
        """
        await self._transport.call_for_json("DELETE", f"/warm-policies/{path_part(id)}", etag=etag)

    async def get(self, id: Id) -> models.WarmPolicy:
        """Contexts that are warmed by the clock, or whenever blocks are lost."""
        return await self._transport.call(
            "GET", f"/warm-policies/{path_part(id)}", models.WarmPolicy
        )

    async def update(
        self,
        id: Id,
        *,
        cron: str | None = None,
        time_zone: str | None = None,
        engine: int | Omit | None = OMIT,
        is_paused: bool | None = None,
        etag: str | None = None,
    ) -> models.WarmPolicy:
        """Changes, pauses or resumes a policy.

        Args:
            cron: five fields, with a schedule: 30 7 * * 1-5
            time_zone: such as Europe/Berlin
            engine: null: any healthy one
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "PATCH",
            f"/warm-policies/{path_part(id)}",
            models.WarmPolicy,
            body=members(
                {"cron": cron, "time_zone": time_zone, "is_paused": is_paused},
                nullable={"engine": engine},
            ),
            etag=etag,
        )

    def list(
        self,
        *,
        context: Id | None = None,
        ordering: str | None = None,
        page_size: int | None = None,
        paused: bool | None = None,
        tenant: str | None = None,
        total: bool | None = None,
    ) -> AsyncPages[models.WarmPolicy]:
        """Contexts that are warmed by the clock, or whenever blocks are lost.

        Args:
            ordering: sort key, - for descending; -created_at unless given. Rows that change
                while you walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            tenant: slug of the tenant
            total: true: count the rows of all pages
        """
        return AsyncPages(
            self._transport,
            "/warm-policies",
            {
                "context": context,
                "ordering": ordering,
                "page_size": page_size,
                "paused": paused,
                "tenant": tenant,
                "total": total,
            },
            models.WarmPolicy,
        )


class AsyncWebhooks(AsyncResource):
    """Operations on webhooks."""

    async def create(
        self, *, url: str, tenant: str | None = None, types: Sequence[str] | None = None
    ) -> models.WebhookWithSecret:
        """Adds a webhook. Only this answer holds its secret; a repeated answer holds null.

        Args:
            url: gets a POST for each event
            tenant: slug; not needed with a key of one tenant
            types: of events, with patterns such as context.*; empty: every type
        """
        return await self._transport.call(
            "POST",
            "/webhooks",
            models.WebhookWithSecret,
            body=members({"url": url, "tenant": tenant, "types": types}),
        )

    async def delete(self, id: Id, *, etag: str | None = None) -> None:
        """Removes a webhook with its deliveries.

        Args:
            etag: of the version that is changed; refused if it is older.
        """
        await self._transport.call_for_json("DELETE", f"/webhooks/{path_part(id)}", etag=etag)

    async def get(self, id: Id) -> models.Webhook:
        """Addresses that get a tenant's events, signed as Standard Webhooks."""
        return await self._transport.call("GET", f"/webhooks/{path_part(id)}", models.Webhook)

    async def update(
        self,
        id: Id,
        *,
        url: str | None = None,
        types: Sequence[str] | None = None,
        is_active: bool | None = None,
        etag: str | None = None,
    ) -> models.Webhook:
        """Changes a webhook. One that becomes active gets what waits for it at once.

        Args:
            url: gets a POST for each event
            types: of events, with patterns such as context.*; empty: every type
            is_active: true: begin anew with what waits
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "PATCH",
            f"/webhooks/{path_part(id)}",
            models.Webhook,
            body=members({"url": url, "types": types, "is_active": is_active}),
            etag=etag,
        )

    async def rotate_secret(
        self, id: Id, *, overlap: Duration | None = None, etag: str | None = None
    ) -> models.WebhookWithSecret:
        """Makes a new secret, which only this answer holds. The old one also signs for a while.

        Args:
            overlap: how long the old secret also signs; 24h unless given: such as 90s, 30m,
                2h, 7d, 1h30m, or ISO 8601: PT2H, P7D
            etag: of the version that is changed; refused if it is older.
        """
        return await self._transport.call(
            "POST",
            f"/webhooks/{path_part(id)}/rotate-secret",
            models.WebhookWithSecret,
            body=members({"overlap": overlap}),
            etag=etag,
        )

    async def test(self, id: Id) -> models.Delivery:
        """Sends an event of type webhook.test to this webhook only. See its deliveries."""
        return await self._transport.call(
            "POST", f"/webhooks/{path_part(id)}/test", models.Delivery
        )

    def list(
        self,
        *,
        is_active: bool | None = None,
        ordering: str | None = None,
        page_size: int | None = None,
        tenant: str | None = None,
        total: bool | None = None,
    ) -> AsyncPages[models.Webhook]:
        """Addresses that get a tenant's events, signed as Standard Webhooks.

        Args:
            ordering: sort key, - for descending; -created_at unless given. Rows that change
                while you walk the pages may be missed with a key that changes.
            page_size: rows of a page; 50 unless given
            tenant: slug of the tenant
            total: true: count the rows of all pages
        """
        return AsyncPages(
            self._transport,
            "/webhooks",
            {
                "is_active": is_active,
                "ordering": ordering,
                "page_size": page_size,
                "tenant": tenant,
                "total": total,
            },
            models.Webhook,
        )


class AsyncWhatIf(AsyncResource):
    """Operations on what if."""

    async def ask(
        self,
        *,
        changes: Sequence[Mapping[str, Any]],
        tenant: str | None = None,
        space: int | None = None,
        window: Duration | None = None,
    ) -> models.Job:
        """Requests a simulation of the tenant's sampled traffic on today's tiers and on each
        change. The job's `detail` will hold hit rates, bytes, GPU seconds and money of a month
        with their errors, against today.

        Args:
            changes: each tried alone
            tenant: slug; absent: your only tenant
            space: id: only its traffic; absent: all of the tenant
            window: traffic of so long up to now; 24h unless given: such as 90s, 30m, 2h, 7d,
                1h30m, or ISO 8601: PT2H, P7D
        """
        return await self._transport.call(
            "POST",
            "/what-if",
            models.Job,
            body=members({"changes": changes, "tenant": tenant, "space": space, "window": window}),
        )

    async def get(self, *, tenant: str | None = None) -> models.Recommendation:
        """A recommendation from the tenant's own traffic, made anew every six hours.

        Args:
            tenant: slug; absent: your only tenant
        """
        return await self._transport.call(
            "GET", "/what-if/recommendation", models.Recommendation, query={"tenant": tenant}
        )


class AsyncWhy(AsyncResource):
    """Operations on why."""

    async def explain(
        self, *, q: str, space: int | None = None, tenant: str | None = None
    ) -> models.Why:
        """One sentence about a request, context or block, and the blocks that prove it. 404: no
        such thing is known.

        Args:
            q: id of a request, context or block, or a context's name
            space: only of this space
            tenant: its slug
        """
        return await self._transport.call(
            "GET", "/why", models.Why, query={"q": q, "space": space, "tenant": tenant}
        )

    async def explain_prompt(
        self,
        *,
        space: int,
        tokens: Sequence[int] | None = None,
        text: str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
        add_special_tokens: bool | None = None,
        salt: str | None = None,
    ) -> models.Why:
        """The same for a prompt, which is not kept: where its blocks are, in its space and under
        other fingerprints.

        Args:
            space: number of the space
            tokens: as the engine's tokeniser makes them
            text: as the prompt of /v1/completions
            messages: as of /v1/chat/completions, of text alone
            tools: with messages
            chat_template_kwargs: with messages
            add_generation_prompt: with messages; default true
            continue_final_message: with messages; default false
            add_special_tokens: default: true with text, false with messages, as in vLLM
            salt: cache_salt of the requests
        """
        return await self._transport.call(
            "POST",
            "/why",
            models.Why,
            body=members(
                {
                    "space": space,
                    "tokens": tokens,
                    "text": text,
                    "messages": messages,
                    "tools": tools,
                    "chat_template_kwargs": chat_template_kwargs,
                    "add_generation_prompt": add_generation_prompt,
                    "continue_final_message": continue_final_message,
                    "add_special_tokens": add_special_tokens,
                    "salt": salt,
                }
            ),
        )


class AsyncOperations(AsyncResource):
    """All of the platform's resources."""

    def __init__(self, transport: AsyncTransport) -> None:
        super().__init__(transport)
        self.alert_rules = AsyncAlertRules(transport)
        self.audit = AsyncAudit(transport)
        self.contexts = AsyncContexts(transport)
        self.deliveries = AsyncDeliveries(transport)
        self.engines = AsyncEngines(transport)
        self.events = AsyncEvents(transport)
        self.explore = AsyncExplore(transport)
        self.families = AsyncFamilies(transport)
        self.family_members = AsyncFamilyMembers(transport)
        self.incident_mail = AsyncIncidentMail(transport)
        self.incidents = AsyncIncidents(transport)
        self.invitations = AsyncInvitations(transport)
        self.jobs = AsyncJobs(transport)
        self.keys = AsyncKeys(transport)
        self.members = AsyncMembers(transport)
        self.move_rules = AsyncMoveRules(transport)
        self.moves = AsyncMoves(transport)
        self.nodes = AsyncNodes(transport)
        self.policies = AsyncPolicies(transport)
        self.prices = AsyncPrices(transport)
        self.rules = AsyncRules(transport)
        self.samples = AsyncSamples(transport)
        self.savings = AsyncSavings(transport)
        self.segments = AsyncSegments(transport)
        self.sign_ins = AsyncSignIns(transport)
        self.spaces = AsyncSpaces(transport)
        self.stores = AsyncStores(transport)
        self.tenants = AsyncTenants(transport)
        self.warm_policies = AsyncWarmPolicies(transport)
        self.webhooks = AsyncWebhooks(transport)
        self.what_if = AsyncWhatIf(transport)
        self.why = AsyncWhy(transport)

    async def lookup(
        self,
        *,
        space: int,
        tokens: Sequence[int] | None = None,
        text: str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
        add_special_tokens: bool | None = None,
        salt: str | None = None,
    ) -> models.LookupResult:
        """How many tokens of a prompt are hot, cold or lost, how many a request would reuse, and
        which contexts begin alike. Changes nothing.

        Args:
            space: number of the space
            tokens: as the engine's tokeniser makes them
            text: as the prompt of /v1/completions
            messages: as of /v1/chat/completions, of text alone
            tools: with messages
            chat_template_kwargs: with messages
            add_generation_prompt: with messages; default true
            continue_final_message: with messages; default false
            add_special_tokens: default: true with text, false with messages, as in vLLM
            salt: cache_salt of the requests
        """
        return await self._transport.call(
            "POST",
            "/lookup",
            models.LookupResult,
            body=members(
                {
                    "space": space,
                    "tokens": tokens,
                    "text": text,
                    "messages": messages,
                    "tools": tools,
                    "chat_template_kwargs": chat_template_kwargs,
                    "add_generation_prompt": add_generation_prompt,
                    "continue_final_message": continue_final_message,
                    "add_special_tokens": add_special_tokens,
                    "salt": salt,
                }
            ),
        )

    async def me(self) -> models.Me:
        """Who you are: role, scopes, tenants, the key's end, and how often you may ask."""
        return await self._transport.call("GET", "/me", models.Me)

    async def usage(
        self,
        *,
        by: str | None = None,
        from_: Moment | None = None,
        range: str | None = None,
        step: Duration | None = None,
        tenant: str | None = None,
        to: Moment | None = None,
    ) -> models.Usage:
        """Counters over time, summed over tenants.

        Args:
            by: adds `groups`
            from_: in place of range: the beginning
            range: 15m without `from`
            step: length of a point, from multiples of it; at most 1,440 points. Absent: the
                shortest that fits
            tenant: slug; absent: all that you may see
            to: with `from`: the end; now unless given
        """
        return await self._transport.call(
            "GET",
            "/usage",
            models.Usage,
            query={
                "by": by,
                "from": from_,
                "range": range,
                "step": step,
                "tenant": tenant,
                "to": to,
            },
        )
