"""vLLM's settings that decide the values of KV: all fields of its configuration, except those that
`HARMLESS` lists with a reason.

A field in neither list (of a newer vLLM) counts unless it has its default: an unknown setting may
cost a shared block, but never shares a wrong one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

# Entries of a model's configuration that name its origin, not what it computes.
_NOT_THE_MODEL: Final = {"_name_or_path", "_commit_hash", "transformers_version", "torch_dtype"}
# Drafters without layers of their own leave no KV.
LAYERLESS_DRAFTERS: Final = frozenset(("ngram", "ngram_gpu", "suffix"))

# Reason → classes of vLLM's configuration, or some of their fields.
_REASONS: Final[dict[str, str]] = {
    "is a field of the identity": """
        ModelConfig: dtype
        CacheConfig: block_size user_specified_block_size _block_size_resolved cache_dtype
        ParallelConfig: pipeline_parallel_size tensor_parallel_size
        VllmConfig: kv_transfer_config""",
    "names the weights, which the revision does by their content": """
        ModelConfig: model model_weights revision seed
        LoadConfig: load_format download_dir
        SpeculativeConfig: model revision code_revision draft_load_config""",
    "its effect is in the built model's classes and tables": """
        ModelConfig: runner convert max_model_len spec_target_max_model_len model_impl
            trust_remote_code is_submodel_config word_embeddings_untied_by_checkpoint
        SpeculativeConfig: max_model_len
        VllmConfig: quant_config""",
    "its effect is in the model's configuration, which counts": """
        ModelConfig: hf_text_config hf_config_path hf_overrides config_format
        CacheConfig: is_attention_free sliding_window
        SpeculativeConfig: target_model_config target_parallel_config
        ModelArchitectureConfig""",
    "its effect is in the kernel's name and the layout of the KV tensors": """
        AttentionConfig: backend backend_per_kind
        CacheConfig: kv_cache_layout skip_page_size_padded effective_attention_block_size
        DeviceConfig
        SpeculativeConfig: attention_backend""",
    "the same mathematics: at most other rounding, as between two batches": """
        AttentionConfig: flash_attn_version flash_attn_max_num_splits_for_cuda_graph
            tokenspeed_mla_min_split_kv tq_max_kv_splits_for_cuda_graph use_trtllm_attention
            mla_prefill_backend sparse_mla_force_mqa sparse_mla_prefill_workspace_factor
            flex_attn_block_m flex_attn_block_n flex_attn_q_block_size flex_attn_kv_block_size
        CompilationConfig PassConfig DynamicShapesConfig IrOpPriorityConfig Range
        KernelConfig: ir_op_priority enable_flashinfer_autotune enable_rocm_segmented_attn_autotune
            enable_cutedsl_warmup enable_jit_warmup
        ModelConfig: disable_cascade_attn enforce_eager
        MultiModalConfig: mm_encoder_tp_mode
        LoRAConfig: lora_dtype
        ParallelConfig: enable_expert_parallel enable_hc_sp enable_ep_weight_filter enable_eplb
            eplb_config expert_placement_strategy all2all_backend disable_custom_all_reduce
            enable_dbo ubatch_size dbo_decode_token_threshold dbo_prefill_token_threshold
            is_moe_model
        EPLBConfig
        VllmConfig: optimization_level performance_mode""",
    "decides which tokens are sampled, not what they leave in the cache": """
        ModelConfig: return_sampling_mask max_logprobs logprobs_mode use_fp64_gumbel
            generation_config override_generation_config logits_processors enable_trace_replay
        ParallelConfig: enable_batch_sharded_sampling
        StructuredOutputsConfig ReasoningConfig WatermarkConfig PoolerConfig
        SpeculativeConfig: enforce_eager num_speculative_tokens draft_tensor_parallel_size
            tensor_parallel_size draft_parallel_config disable_padded_drafter_batch
            disable_eagle_block_drop use_local_argmax_reduction prompt_lookup_max prompt_lookup_min
            num_speculative_tokens_per_batch_size suffix_decoding_max_tree_depth
            suffix_decoding_max_cached_requests suffix_decoding_max_spec_factor
            suffix_decoding_min_token_prob rejection_sample_method synthetic_acceptance_rates
            synthetic_acceptance_length enable_adaptive_verification draft_sample_method""",
    "decides token ids or media, which block ids hold": """
        ModelConfig: tokenizer tokenizer_mode tokenizer_revision skip_tokenizer_init
            allowed_local_media_path allowed_media_domains io_processor_plugin
            renderer_num_workers enable_prompt_embeds
        MultiModalConfig: limit_per_prompt enable_mm_embeds mm_processor_cache_gb
            mm_processor_cache_type mm_hasher_algorithm mm_shm_cache_max_object_size_mb
            interleave_mm_strings skip_mm_profiling mm_tensor_ipc mm_ipc_gpu_memory_gb
        SpeechToTextConfig SpeechToTextParams BaseDummyOptions AudioDummyOptions ImageDummyOptions
        VideoDummyOptions""",
    "decides when and where work is done, and what is kept": """
        CacheConfig: prefix_match_unit gpu_memory_utilization num_gpu_blocks_override
            enable_prefix_caching prefix_caching_hash_algo prefix_cache_retention_interval
            num_gpu_blocks num_cpu_blocks kv_cache_size_tokens kv_cache_max_concurrency
            hash_block_size cache_hit_alignment_tokens kv_cache_memory_bytes kv_offloading_size
            kv_offloading_backend
        SchedulerConfig: runner_type max_num_batched_tokens max_num_scheduled_tokens max_num_seqs
            max_num_active_seqs long_prefill_token_threshold long_prefill_token_threshold_adaptive
            max_num_queued_reqs max_num_queued_tokens enable_chunked_prefill is_multimodal_model
            max_num_encoder_input_tokens encoder_cache_size policy disable_chunked_mm_input
            scheduler_cls disable_hybrid_kv_cache_manager scheduler_reserve_full_isl watermark
            prefill_schedule_interval async_scheduling stream_interval
        LoadConfig: safetensors_load_strategy safetensors_prefetch_num_threads
            safetensors_prefetch_block_size device use_tqdm_on_load pt_load_map_location
        OffloadConfig UVAOffloadConfig PrefetchOffloadConfig EngramConfig
        LoRAConfig: max_lora_rank max_loras fully_sharded_loras max_cpu_loras
            specialize_active_lora max_lora_cls_labels
        ParallelConfig: data_parallel_size data_parallel_size_local data_parallel_rank
            data_parallel_rank_local data_parallel_master_ip data_parallel_rpc_port
            dp_sync_interval data_parallel_master_port data_parallel_backend
            data_parallel_external_lb data_parallel_hybrid_lb max_parallel_loading_workers
            enable_shm_tensor_arena enable_elastic_ep elastic_ep_max_dp_size
            disable_nccl_for_dp_synchronization ray_workers_use_nsight ray_runtime_env
            placement_group distributed_executor_backend master_addr master_port node_rank nnodes
            numa_bind numa_bind_nodes numa_bind_cpus assigned_physical_gpu_ids
            distributed_timeout_seconds cpu_distributed_timeout_seconds world_size rank
            _data_parallel_master_port_list _coord_store_port dcp_comm_backend dcp_q_replicate
            _allow_auto_resolve_cp_interleave_size data_parallel_index _api_process_count
            _api_process_rank enable_fault_tolerance fault_tolerance_config
        FaultToleranceConfig
        ModelConfig: allow_deprecated_quantization served_model_name hf_token enable_sleep_mode
            sleep_preserve_parameter_names sleep_mode_backend sleep_mode_offload_cudagraph
            enable_nccl_comm_suspend enable_cumem_allocator
        MultiModalConfig: mm_encoder_fp8_scale_save_path mm_encoder_fp8_scale_save_margin
        VllmConfig: instance_id shutdown_timeout
        ObservabilityConfig LoggingConfig ProfilerConfig KVTransferConfig KVEventsConfig
        ECTransferConfig EncoderCacheManagerConfig AuxOutputConfig""",
    "changes weights in a running engine, which are compared after every reset": """
        WeightTransferConfig""",
    "models that keep a state are refused": """
        MambaConfig
        CacheConfig: mamba_page_size_padded mamba_block_size mamba_cache_dtype
            mamba_ssm_cache_dtype mamba_cache_mode enable_mamba_shared_prefix_checkpoint
            replayssm_buffer_len use_replayssm use_kda_recoverssm""",
    "engines that split blocks so are refused": """
        ParallelConfig: prefill_context_parallel_size decode_context_parallel_size
            dcp_kv_cache_interleave_size cp_kv_cache_interleave_size""",
}
# Known fields that count whenever they do not have their default.
_DECIDES: Final = """
    VllmConfig: additional_config
    ModelConfig: hf_config quantization quantization_config model_class_overrides
        disable_sliding_window code_revision
    MultiModalConfig: language_model_only media_io_kwargs mm_processor_kwargs
        mm_device_do_normalize mm_encoder_only mm_encoder_attn_backend mm_encoder_attn_dtype
        mm_encoder_fp8_scale_path video_pruning_rate video_pruning_method
        allow_missing_mm_embeddings
    CacheConfig: kv_cache_dtype_skip_layers kv_sharing_fast_prefill swa_bounded_replay
    ParallelConfig: worker_cls worker_extension_cls
    AttentionConfig: minimax_m3_msa_decode_backend indexer_kv_dtype
        disable_flashinfer_q_quantization use_prefill_query_quantization
        indexer_sparse_logits use_non_causal
    HiSparseConfig: device_buffer_size eager_host_mirror
    KernelConfig: moe_backend sparse_indexer_topk_backend linear_backend
        linear_backend_per_quant
    LoadConfig: model_loader_extra_config ignore_patterns
    LoRAConfig: target_modules default_mm_loras enable_tower_connector_lora
        enable_mixed_moe_lora_format enable_moe_shared_loras
    SpeculativeConfig: method quantization moe_backend kv_cache_dtype
        index_share_for_mtp_iteration use_heterogeneous_vocab parallel_drafting
        draft_model_config dspark_draft_topk
    QuantizationConfigArgs: ignore linear moe targets
    QuantSpec: activation weight
    DiffusionConfig: canvas_length max_denoising_steps"""


def _names(text: str) -> Iterator[str]:
    """`Class` and `Class.field` of a text as above."""
    kind = ""
    for word in text.split():
        if word.endswith(":"):
            kind = word[:-1]
        elif word[0].isupper():
            yield word
        else:
            yield f"{kind}.{word}"


# Why it does not count.
HARMLESS: Final = {name: reason for reason, text in _REASONS.items() for name in _names(text)}
DECIDES: Final = frozenset(_names(_DECIDES))


def deciding_settings(config: Any) -> dict[str, Any]:
    """`Class.field` → value as plain data, for all fields that count and are not at their default.

    `config` is a `VllmConfig`, or any dataclass that holds others.
    """
    found: dict[str, Any] = {}
    _collect(config, found)
    return found


def _collect(config: Any, found: dict[str, Any], under: str = "") -> None:
    kind = type(config).__name__
    if kind in HARMLESS or getattr(config, "method", None) in LAYERLESS_DRAFTERS:
        return
    for field in fields(config):
        name = f"{kind}.{field.name}"
        if name in HARMLESS:
            continue
        value = getattr(config, field.name)
        if is_dataclass(value) and not hasattr(value, "to_dict"):
            # A drafter's model has a configuration like the model's own.
            _collect(value, found, f"{under}{name}:" if field.name.startswith("draft") else under)
        elif name == "ParallelConfig.worker_cls" and str(value).startswith("vllm."):
            continue  # vLLM's own, by the device
        elif not _is_default(field, value):
            found[under + name] = plain(value)
    path = getattr(config, "mm_encoder_fp8_scale_path", None)
    if path and Path(path).is_file():
        found[f"{under}{kind}.mm_encoder_fp8_scale_path"] = Path(path).read_text(errors="replace")


def _is_default(field: "Field[Any]", value: Any) -> bool:
    default: Any = field.default
    if hasattr(default, "get_default"):  # pydantic's
        default = default.get_default(call_default_factory=True)
    if field.default_factory is not MISSING:
        default = field.default_factory()
    return type(value) is type(default) and bool(value == default)


def plain(value: Any) -> Any:
    """JSON data that are equal in every process: no addresses, no order of sets, no origin of a
    model."""
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items() if k not in _NOT_THE_MODEL}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(plain(item)) for item in value)
    if hasattr(value, "to_dict"):  # a model's configuration
        return plain(value.to_dict())
    if hasattr(value, "model_dump"):  # pydantic's
        return plain(value.model_dump())
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if type(value).__module__ == "torch" or isinstance(value, Path):
        return str(value)
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
