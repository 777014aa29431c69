"""The Celery tasks, one for each kind of work. Each may run twice at once.

Beat's ticks and requested jobs call the same functions (`workers.kinds`).
"""

from catalog import kinds, slicing
from contexts import bulk as context_bulk
from contexts import work as contexts
from engines import work as engines
from incidents import work as incidents
from planning import account as planning_account
from planning import moves as planning_moves
from planning import samples as planning_samples
from planning import whatif
from tiering import context_work, upkeep, work
from workers.kinds import does

watch = does(kinds.WATCH, work.watch)
flush = does(kinds.FLUSH, work.flush, find=work.tenants_of_a_whole_index)
sweep = does(kinds.SWEEP, work.sweep, find=work.tenants_of_a_whole_index)
compact = does(kinds.COMPACT, work.compact, find=work.tenants_of_a_whole_index)
expire = does(kinds.EXPIRE, work.expire)
move = does(kinds.MOVE, planning_moves.work, find=planning_moves.tenants_with_moves)
check_stores = does(kinds.CHECK_STORES, upkeep.check_stores)
retain = does(kinds.RETAIN, work.retain, find=work.changed_tenants)
expire_contexts = does(
    kinds.EXPIRE_CONTEXTS, context_work.expire_contexts, find=context_work.tenants_with_ends
)
check_contexts = does(
    kinds.CHECK_CONTEXTS, context_work.check_contexts, find=work.tenants_of_a_whole_index
)
promote = does(kinds.PROMOTE, context_work.promote, find=list)  # only on request
remove_tenant = does(kinds.REMOVE_TENANT, work.remove_tenant, find=work.leaving_tenants)
remove_space = does(kinds.REMOVE_SPACE, work.remove_space, find=work.leaving_spaces)
bulk = does(kinds.BULK, context_bulk.work, find=list)  # only on request
rebuild_tenant = does(kinds.REBUILD_TENANT, work.rebuild_tenant, find=list)  # only on request
rebuild_index = does(kinds.REBUILD_INDEX, work.rebuild_index)
reconcile = does(kinds.RECONCILE, work.reconcile)
end_access = does(kinds.END_ACCESS, upkeep.end_access)
sample = does(kinds.SAMPLE, upkeep.sample)
slice = does(kinds.SLICE, slicing.work)
account = does(kinds.ACCOUNT, planning_account.work)
store_samples = does(
    kinds.STORE_SAMPLES, planning_samples.store, find=planning_samples.every_tenant
)
deliver = does(kinds.DELIVER, upkeep.deliver)
prune = does(kinds.PRUNE, upkeep.prune)
housekeeping = does(kinds.HOUSEKEEPING, upkeep.housekeeping)
check_engines = does(kinds.CHECK_ENGINES, engines.check_engines, find=engines.tenants_with_engines)
warm = does(kinds.WARM, contexts.warm, find=list)  # only on request
warm_by_policy = does(
    kinds.WARM_BY_POLICY, contexts.warm_by_policy, find=contexts.tenants_with_policies
)
what_if = does(kinds.WHAT_IF, whatif.work, find=list)  # only on request
recommend = does(kinds.RECOMMEND, whatif.recommend, find=whatif.tenants_to_advise)
watch_incidents = does(kinds.WATCH_INCIDENTS, incidents.watch_incidents)
mail_incidents = does(kinds.MAIL_INCIDENTS, incidents.mail_incidents)
