"""SGLang's speculative algorithm `SEER`: registration, and the worker that drafts and accepts.

Written against SGLang 0.5.23; the only file that touches `sglang.srt.speculative`. A decode step asks
the drafter for nodes. Without any it is SGLang's plain decode; otherwise all rows go through the model
in one verify forward, SGLang's own sampler samples at every row, and the tokens are those on the path
that the samples take (`verify.py`). Penalties, biases and sampling parameters are the request's own at
each of its rows, logprobs those of plain decoding.

On a CPU every request has as many rows as it has nodes. On a GPU all requests of a step have the same
number of rows from a small set, filled up with rows that nothing can accept, and acceptance stays on the
device. That path has not run yet: it is written from SGLang's source, and verifies eagerly unless the
step's width is the one that SGLang captured a graph for.
"""

from typing import Any

import numpy as np
import torch
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
from sglang.srt.speculative.spec_info import SpecInput, SpecInputType, SpeculativeAlgorithm
from sglang.srt.speculative.spec_registry import CustomSpecAlgo

from seer_sgl.engine import verify
from seer_sgl.engine.drafting import Drafting, Engine, settings_from_environment, with_tail
from seer_sgl.engine.sampling import sample_rows
from seer_sgl.engine.verify import Nodes, Rows

NAME = "SEER"


class SeerAlgorithm(CustomSpecAlgo):  # type: ignore[misc]
    """What SGLang asks of an algorithm. It passes for n-gram drafting: no draft model, no draft KV."""

    def is_ngram(self) -> bool:
        return True

    def has_draft_kv(self) -> bool:
        return False

    # SGLang 0.5.23 calls these three, and its base class for plugins lacks them.
    def need_topk(self) -> bool:
        return False

    def carries_draft_hidden_states(self) -> bool:
        return False

    def create_future_map(self, device: Any, req_to_token_pool: Any, *rest: Any, **named: Any) -> Any:
        from sglang.srt.managers.overlap_utils import FutureMap

        return FutureMap(device, self, req_to_token_pool, *rest, **named)

    def handle_server_args(self, server_args: Any) -> None:
        """What SGLang does for its own n-gram drafting."""
        settings = settings_from_environment()
        if server_args.enable_dp_attention:
            raise ValueError("speculation with SEER does not support --enable-dp-attention")
        server_args.speculative_num_draft_tokens = settings.max_nodes + 1
        server_args.speculative_num_steps = 1
        # Above 1 tells fa3 that there are trees; with 1 it would verify them as chains.
        server_args.speculative_eagle_topk = 1 if server_args.device == "cpu" else 2
        server_args.enable_mixed_chunk = False
        if server_args.max_running_requests is None:
            server_args.max_running_requests = 48


def register() -> None:
    """Make `--speculative-algorithm SEER` known. Once per process."""

    @SpeculativeAlgorithm.register(NAME, supports_overlap=True, spec_class=SeerAlgorithm)  # type: ignore[untyped-decorator]
    def _worker(_server_args: Any) -> type:
        return SeerWorker


class VerifyInput(SpecInput):  # type: ignore[misc]
    """One verify forward on a CPU; `rows` is what our attention backend reads."""

    def __init__(self, rows: Rows) -> None:
        super().__init__(SpecInputType.NGRAM_VERIFY)
        self.rows = rows
        self.positions = torch.from_numpy(rows.positions)
        self.draft_token_num = int(rows.widths.max())
        self.num_tokens_per_req = self.num_tokens_for_logprob_per_req = self.draft_token_num


class Carried(SpecInput):  # type: ignore[misc]
    """What a batch keeps between steps: nothing but, under overlap, the last step's tokens.

    SGLang's relay reads `accept_tokens`, flat with the constant stride `draft_token_num`.
    """

    def __init__(self, stride: int, tokens: torch.Tensor | None, counts: torch.Tensor | None) -> None:
        super().__init__(SpecInputType.NGRAM_VERIFY)
        self.draft_token_num = self.num_tokens_per_req = self.num_tokens_for_logprob_per_req = stride
        self.accept_tokens = tokens
        self.accept_lens = counts
        self.future_indices: torch.Tensor | None = None

    def filter_batch(self, new_indices: torch.Tensor, new_indices_cpu: Any = None) -> None:
        if self.future_indices is not None:
            self.future_indices = self.future_indices[new_indices]

    def merge_batch(self, other: "Carried") -> None:
        if self.future_indices is not None:
            self.future_indices = torch.cat((self.future_indices, other.future_indices))


class SeerWorker(BaseSpecWorker):  # type: ignore[misc]
    """Stands between SGLang's scheduler and its model worker."""

    def __init__(self, server_args: Any, gpu_id: int, nccl_port: int, target_worker: Any) -> None:
        from sglang.srt.runtime_context import get_parallel, get_schedule

        super().__init__()
        self._target_worker = target_worker
        self._runner = target_worker.model_runner
        self._overlap = not get_schedule().disable_overlap_schedule
        self._on_cpu = torch.device(self._runner.device).type == "cpu"
        self._settings = settings_from_environment()
        self._stride = self._settings.max_nodes + 1
        self.speculative_num_draft_tokens = self._stride
        model = self._runner.model_config
        self._context_tokens = int(model.context_len)
        parallel = get_parallel()
        ranks = parallel.tp_group.cpu_group if parallel.tp_size > 1 else None
        engine = Engine(uniform=not self._on_cpu, vocab_size=int(model.vocab_size))
        self.drafting = Drafting(self._settings, engine, ranks, parallel.tp_rank)
        self.unsettled: tuple[Any, torch.Tensor] | None = None
        """Rows and accepted counts of a step that ran on a device."""
        self.ranks = parallel.tp_group if parallel.tp_size > 1 else None

    @property
    def target_worker(self) -> Any:
        return self._target_worker

    @property
    def draft_worker(self) -> None:
        """None: weights are updated, graphs captured and memory given to the target alone."""
        return

    def alloc_memory_pool(self, **_pools: Any) -> None:
        self._table, self._allocator = self._target_worker.get_memory_pool()

    def clear_cache_pool(self) -> None:
        """Called when the cache is flushed, as after a change of weights."""
        self.drafting.reset()

    def note_request_finished(self, *, rid: str, natural_stop: bool) -> None:
        self.drafting.left(rid)

    # SGLang's manager of extra n-gram corpora is built for every n-gram algorithm.
    def add_external_corpus(self, _corpus_id: str, _chunks: Any) -> int:
        raise ValueError("SEER drafts from groups; it has no external corpora")

    commit_corpus_load = remove_external_corpus = add_external_corpus

    def list_external_corpora(self) -> dict[str, int]:
        return {}

    def forward_batch_generation(
        self, batch: Any, on_publish: Any = None, pp_proxy_tensors: Any = None, **_named: Any
    ) -> Any:
        """One step of the scheduler: prefill as it is, decode with drafts."""
        if not batch.forward_mode.is_decode():
            return self._prefill(batch, on_publish, pp_proxy_tensors)
        self._settle()
        step = (_Step if self._on_cpu else _DeviceStep)(self, batch)
        nodes = self.drafting.step(batch.reqs, step.outputs, step.limits())
        # On a GPU a verify of one row each is what graphs are captured for.
        if nodes.starts[-1] == 0 and (self._on_cpu or not step.exact):
            return step.decode(on_publish)
        return step.verify(nodes, on_publish)

    def _settle(self) -> None:
        """Tell what the last step accepted, if a device kept it to itself so far."""
        if self.unsettled is not None:
            widths, counts = self.unsettled
            self.unsettled = None
            self.drafting.verified(widths, counts.tolist())

    def _prefill(self, batch: Any, on_publish: Any, pp_proxy_tensors: Any) -> Any:
        result = self._target_worker.forward_batch_generation(batch, pp_proxy_tensors=pp_proxy_tensors)
        tokens = result.next_token_ids
        if tokens is None or batch.forward_mode.is_idle():
            tokens = torch.zeros(len(batch.reqs), dtype=torch.int64, device=batch.device)
        counts = torch.ones(len(batch.reqs), dtype=torch.int32, device=batch.device)
        return self.finish(batch, result, tokens.view(-1, 1), counts, batch.seq_lens.clone(), on_publish)

    def finish(
        self,
        batch: Any,
        result: Any,
        tokens: torch.Tensor,
        counts: torch.Tensor,
        lengths: torch.Tensor,
        on_publish: Any,
    ) -> Any:
        """Hand SGLang `tokens`, `[requests, any]`, of which `counts` of each request count."""
        if on_publish is not None:
            on_publish(lengths)
        relayed = None
        if self._overlap:
            relayed = torch.zeros(len(tokens), self._stride, dtype=torch.int32, device=tokens.device)
            relayed[:, : tokens.shape[1]] = tokens
            relayed = relayed.flatten()
        result.next_token_ids = tokens.flatten()
        result.accept_lens = counts
        result.new_seq_lens = lengths
        result.next_draft_input = Carried(self._stride, relayed, counts if self._overlap else None)
        result.speculative_num_draft_tokens = tokens.shape[1]
        return result

    def outputs(self, batch: Any) -> list[Any]:
        """What each request has generated in this chunk, up to its root.

        Under overlap the scheduler files a step's tokens after it has launched the next one, unless
        it had a prefill to launch between; so the number that is missing is counted, not assumed.
        """
        if not self._overlap:
            return [request.output_ids for request in batch.reqs]
        tails = batch.spec_info.accept_tokens.view(len(batch.reqs), -1).tolist()
        ends = batch.spec_info.accept_lens.tolist()
        outputs = []
        for request, known, tail, end in zip(
            batch.reqs, batch.seq_lens_cpu.tolist(), tails, ends, strict=True
        ):
            missing = known + 1 - len(request.origin_input_ids_unpadded) - len(request.output_ids)
            outputs.append(with_tail(request.output_ids, tail[end - missing : end]))
        return outputs


class _Step:
    """One decode step of a batch."""

    def __init__(self, worker: SeerWorker, batch: Any) -> None:
        self._worker = worker
        self._batch = batch
        self.outputs = worker.outputs(batch)
        self._lengths = batch.seq_lens_cpu.numpy()
        self._old = batch.seq_lens
        info = batch.sampling_info
        self.exact = not (
            batch.has_grammar
            or batch.return_hidden_states
            or info.has_custom_logit_processor
            or info.sampling_mask_batch_indices is not None
            or info.has_watermark_candidates
        )
        """Whether rows can be sampled as plain decode would."""

    def limits(self) -> list[int]:
        """Most nodes of each request."""
        batch = self._batch
        if not self.exact:
            return [0] * len(batch.reqs)
        context = self._worker._context_tokens
        return [
            max(0, min(request.sampling_params.max_new_tokens - len(output) - 1, context - length - 2))
            for request, output, length in zip(
                batch.reqs, self.outputs, self._lengths.tolist(), strict=True
            )
        ]

    def _roots(self) -> np.ndarray[Any, Any]:
        return np.array([output[-1] for output in self.outputs], np.int32)

    def decode(self, on_publish: Any) -> Any:
        """SGLang's plain decode, in which sampling, penalties, grammars and logprobs are its own."""
        batch, worker = self._batch, self._worker
        table = worker._table.req_to_token
        batch.input_ids = torch.from_numpy(self._roots().astype(np.int64)).to(self._old.device)
        batch.out_cache_loc = table[batch.req_pool_indices, self._old].to(torch.int64)
        batch.spec_info = None
        batch.seq_lens = self._old + 1
        batch.seq_lens_cpu = batch.seq_lens_cpu + 1
        batch.seq_lens_sum = None
        result = worker._target_worker.forward_batch_generation(batch)
        output = result.logits_output
        if batch.return_logprob:
            output.next_token_logprobs = output.next_token_logprobs.view(-1, 1)
        counts = torch.ones(len(batch.reqs), dtype=torch.int32, device=self._old.device)
        worker.drafting.verified(np.ones(len(batch.reqs), np.int32), [1] * len(batch.reqs))
        tokens = result.next_token_ids.view(-1, 1)
        return worker.finish(batch, result, tokens, counts, batch.seq_lens, on_publish)

    def verify(self, nodes: Nodes, on_publish: Any) -> Any:
        """Compute all rows, sample at each, accept along the samples."""
        from sglang.srt.model_executor.forward_batch_info import ForwardMode

        batch, worker = self._batch, self._worker
        rows = verify.lay_out(nodes, self._roots(), self._lengths)
        table = worker._table.req_to_token
        slots = verify.gather_slots(
            table.numpy(), batch.req_pool_indices.numpy(), self._lengths, rows.starts
        )
        batch.forward_mode = ForwardMode.TARGET_VERIFY
        batch.input_ids = torch.from_numpy(rows.tokens)
        batch.out_cache_loc = torch.from_numpy(slots)
        batch.spec_info = VerifyInput(rows)
        result = worker._target_worker.forward_batch_generation(batch, is_verify=True)
        output = result.logits_output
        sampled = sample_rows(worker._runner.sampler, batch.sampling_info, output, rows)
        accepted = verify.accept(rows, sampled.numpy())
        sources, targets = verify.moves(rows.starts, accepted.rows, accepted.counts)
        if len(sources):
            pool = worker._allocator.get_kvcache()
            pool.move_kv_cache(torch.from_numpy(slots[targets]), torch.from_numpy(slots[sources]))
        path = torch.from_numpy(accepted.rows)
        if batch.return_logprob:
            from sglang.srt.layers.logprob_processor import compute_spec_logprobs

            compute_spec_logprobs(batch, output, sampled, accept_index=path)
        counts = torch.from_numpy(accepted.counts)
        worker.drafting.verified(rows.widths, accepted.counts.tolist())
        batch.forward_mode = ForwardMode.DECODE
        tokens = sampled[path.clamp(min=0)]
        return worker.finish(batch, result, tokens, counts, self._old + counts, on_publish)


class _DeviceStep(_Step):
    """The same on a GPU: one width for all requests, and acceptance without a word to the host."""

    def verify(self, nodes: Nodes, on_publish: Any) -> Any:
        from sglang.srt.model_executor.forward_batch_info import ForwardMode

        batch, worker = self._batch, self._worker
        widest = int(np.diff(nodes.starts).max()) + 1
        width = next(width for width in worker._settings.widths if width >= widest)
        rows = verify.lay_out(nodes, self._roots(), self._lengths, width)
        deepest = int((rows.positions.reshape(-1, width) - self._lengths[:, None]).max()) + 1
        tokens, parents = self._to_device(rows.tokens), self._to_device(rows.parents)
        batch.forward_mode = ForwardMode.TARGET_VERIFY
        batch.input_ids = tokens
        batch.out_cache_loc = slots = self._slots(width)
        batch.spec_info = self._input(rows, tokens, width)
        result = worker._target_worker.forward_batch_generation(batch, is_verify=True)
        output = result.logits_output
        sampled = sample_rows(worker._runner.sampler, batch.sampling_info, output, rows)
        if worker.ranks is not None:
            # Kernels may differ in the last bit between ranks, and one other token parts them.
            worker.ranks.broadcast(sampled, src=0)
        accepted = verify.accept_on_device(tokens, parents, sampled, width, deepest)
        path = accepted.rows.clamp(min=0)
        targets = slots.view(-1, width)[:, : path.shape[1]]
        sources = torch.where(accepted.rows == verify.PAD, targets, slots[path])
        worker._allocator.get_kvcache().move_kv_cache(targets.flatten(), sources.flatten())
        if batch.return_logprob:
            from sglang.srt.layers.logprob_processor import compute_spec_logprobs

            compute_spec_logprobs(batch, output, sampled, accept_index=accepted.rows)
        worker.unsettled = rows.widths, accepted.counts
        batch.forward_mode = ForwardMode.DECODE
        lengths = self._old + accepted.counts
        return worker.finish(batch, result, sampled[path], accepted.counts, lengths, on_publish)

    def _to_device(self, values: Any) -> torch.Tensor:
        return torch.from_numpy(values).to(self._old.device, non_blocking=True)

    def _slots(self, width: int) -> torch.Tensor:
        """Those that the scheduler reserved behind each request's tokens."""
        places = self._old[:, None] + torch.arange(width, device=self._old.device)
        table = self._worker._table.req_to_token
        return table[self._batch.req_pool_indices[:, None], places].flatten().to(torch.int64)

    def _input(self, rows: Rows, tokens: torch.Tensor, width: int) -> Any:
        """What SGLang's attention backends and graph runner take for n-gram drafts."""
        from sglang.srt.speculative.ngram_info import NgramVerifyInput

        tree = np.empty((rows.starts[-1], width), np.bool_)
        verify.ancestor_mask(rows.starts, rows.parents, tree)
        own = tree.reshape(-1, width, width)
        masks = [
            np.concatenate([np.ones((width, length), np.bool_), part], axis=1).ravel()
            for length, part in zip(self._lengths.tolist(), own, strict=True)
        ]
        children, siblings = verify.sibling_links(rows.starts, rows.parents)
        shape = (-1, width)
        return NgramVerifyInput(
            draft_token=tokens,
            custom_mask=self._to_device(np.concatenate(masks)),
            positions=self._to_device(rows.positions),
            retrieve_index=self._to_device(np.arange(rows.starts[-1]).reshape(shape)),
            retrieve_next_token=self._to_device(children.reshape(shape)),
            retrieve_next_sibling=self._to_device(siblings.reshape(shape)),
            draft_token_num=width,
        )
