"""vLLM's DRAM tier for an engine on CPU: vLLM's own classes, except for the copies.

vLLM refuses to make the worker of its DRAM tier on a CPU: that one copies on CUDA streams. Here
copies are made at once by memcpy; the shared memory, its layout, the managers and the connector are
vLLM's. Named by `spec_name` and `spec_module_path` in an `OffloadingConnector`'s extra config.
"""

from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class HostTieringSpec(TieringOffloadingSpec):
    def get_worker(self, kv_caches):
        if self._worker is None:
            region = SharedOffloadRegion(
                engine_id=self.config.engine_id,
                num_chunks=self.num_chunks,
                rank=self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._worker = HostWorker(kv_caches, self.blocks_per_chunk, region)
        return self._worker


class HostWorker(OffloadingWorker):
    def __init__(self, kv_caches, blocks_per_chunk, region):
        self._blocks_per_chunk = blocks_per_chunk
        self._region = region
        pairs = []  # of every tensor: its pages, and those of the DRAM tier
        for each in kv_caches.tensors:
            row = region.create_next_worker_view(each.page_size_bytes * blocks_per_chunk)
            pairs.append((each.tensor, row, each.page_size_bytes))
        # Layers of several groups may lie in one tensor, in different blocks.
        self._groups = [
            [pairs[ref.tensor_idx] for ref in refs] for refs in kv_caches.group_data_refs
        ]
        self._ended = []

    def submit_store(self, job_id, src_spec, dst_spec):
        return self._copy(job_id, src_spec, dst_spec, into_row=True)

    def submit_load(self, job_id, src_spec, dst_spec):
        return self._copy(job_id, dst_spec, src_spec, into_row=False)

    def _copy(self, job_id, engine, host, *, into_row):
        blocks, chunks = iter(engine.block_ids.tolist()), iter(host.block_ids.tolist())
        for pairs, count, index in zip(
            self._groups, engine.group_sizes, engine.block_indices, strict=True
        ):
            first = index % self._blocks_per_chunk
            for n in range(first, first + count):
                at = n % self._blocks_per_chunk
                if n == first or at == 0:
                    row = next(chunks)
                block = next(blocks)
                for tensor, rows, size in pairs:
                    there = rows[row, at * size : (at + 1) * size]
                    if into_row:
                        there.copy_(tensor[block])
                    else:
                        tensor[block].copy_(there)
        self._ended.append(TransferResult(job_id=job_id, success=True))
        return True

    def get_finished(self):
        ended, self._ended = self._ended, []
        return ended

    def wait(self, job_ids):
        pass

    def shutdown(self):
        self._groups.clear()
        self._region.cleanup()
