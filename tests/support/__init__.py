"""Code that tests, torture, attacks and benchmarks share. No test is in here.

servers         testsettings, servers, platform_servers, cluster, on_postgres, vllm_server,
                certificates, chromium
network trouble proxy, cutting_proxy, scripted_http, silence
data            rows, cold_world, tenant_world, chains, cache_endpoint, drift
programs        commands, crowd, fuzz_api (with fuzz_hooks), try_wheel, vllm_api,
                coverage_by_package
"""
