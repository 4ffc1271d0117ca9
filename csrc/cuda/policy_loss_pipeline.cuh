// SPDX-License-Identifier: Apache-2.0
// The policy loss with its gradient for long rows: one cluster after another row, as a pipeline.
// While one team of a block sums a row, another writes the gradient of the row before, a warp
// brings the row after, and one more warp evaluates the objective; none waits for the memory of
// another.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/policy_loss_score.cuh"
#include "cuda/row.cuh"
#include "cuda/signals.cuh"

namespace rlkern {

// What belongs to a slice on its way through a block: the signals say how far it has come.
template <bool CAPPED>
struct Stage {
  Stat of_blocks[1 << kLogMostBlocks];
  Block block;
  Token<float> given;
  float own_x;
  int64_t token;
  Temper<CAPPED> temper;
  Signal brought, summed, met, scored, freed;

  __device__ void open() {
    open_signal(&brought, kWarp);
    open_signal(&summed, kWarps);
    for (Signal* one : {&met, &scored, &freed}) open_signal(one, 1);
  }
};

// The turn of a row in a block, the n-th that counts.
template <class S, bool CAPPED>
struct Turn {
  unsigned row, number;  // number: how many rows had the stage before
  Place place;
  Stage<CAPPED>* stage;
  Slice<S> slice;

  __device__ Turn(const PolicyLoss& p, unsigned row, unsigned n, int rank, int log_blocks)
      : row(row),
        number(n / kStages),
        place(p.call.logits, row),
        stage(stage_at(n % kStages)),
        slice(p.call.logits, place, rank, log_blocks, slice_memory(p, n % kStages, log_blocks)) {}

  static __device__ Stage<CAPPED>* stage_at(unsigned k) {
    static_assert(sizeof(Stage<CAPPED>) <= kStageBytes, "the slices lie behind the stages");
    return reinterpret_cast<Stage<CAPPED>*>(shared_memory() + k * kStageBytes);
  }
  static __device__ char* slice_memory(const PolicyLoss& p, unsigned k, int log_blocks) {
    return shared_memory() + kStages * kStageBytes +
           k * stage_slice_bytes(int(p.call.logits.vocab), sizeof(S), log_blocks);
  }
};

// One warp brings a slice and, before a gradient may take the row's place, what its token is scored
// by.
template <class S, bool CAPPED>
__device__ void bring(const PolicyLoss& p, const Turn<S, CAPPED>& turn) {
  const int lane = int(threadIdx.x) % kWarp;
  Stage<CAPPED>* const stage = turn.stage;
  const Slice<S>& slice = turn.slice;
  const S* const from = slice.row + slice.begin;
  const Peel<S> peel(from, slice.columns);
  if (turn.number > 0) wait_for_turn(&stage->freed, turn.number - 1);
  fence_copies();
  __syncwarp();
  if (lane == 0) {
    const int bytes = peel.groups * int(sizeof(Group<S>));
    expect_bytes(&stage->brought, bytes);
    if (bytes > 0)
      copy_bytes(slice.kept + peel.group(0), from + peel.group(0), bytes, &stage->brought);
    stage->token = p.call.token[turn.row];
    stage->temper = Temper<CAPPED>(p.call, turn.row);
    stage->given = token_of(p, turn.row);
    stage->own_x = token_logit(slice.row, stage->token, p.call.logits.vocab);
  }
  slice.copy_scalars(peel, lane);
  give_signal(&stage->brought);
}

// A team leaves the sums of its slice.
template <class S, bool CAPPED>
__device__ void sum(const Turn<S, CAPPED>& turn) {
  Stage<CAPPED>* const stage = turn.stage;
  wait_for_turn(&stage->brought, turn.number);
  const Temper<CAPPED> temper = stage->temper;
  sum_slice<false>(turn.slice, &stage->block, temper);
  if (member() % kWarp == 0) give_signal(&stage->summed);
}

// One warp joins the sums of a row over the cluster, and evaluates the objective.
template <class S, bool CAPPED>
__device__ void evaluate(const PolicyLoss& p, const Turn<S, CAPPED>& turn, int rank, int blocks) {
  const int lane = int(threadIdx.x) % kWarp;
  Stage<CAPPED>* const stage = turn.stage;
  wait_for_turn(&stage->summed, turn.number);
  const Temper<CAPPED> temper = stage->temper;
  Stat row = slice_statistics<false>(&stage->block, temper);
  if (blocks > 1) {  // a block that is no cluster's may not send: an illegal instruction
    if (lane == 0) {
      expect_bytes(&stage->met, blocks * int(sizeof(Stat)));
      give_signal(&stage->met);
    }
    if (lane < blocks) send_to_block(&stage->of_blocks[rank], &stage->met, lane, row);
    wait_for_turn(&stage->met, turn.number);
    row = joined(blocks, [&](int k) { return stage->of_blocks[k]; });
  }
  if (lane == 0) {
    Token<float> token = stage->given;
    token.logprob = token_logprob_of(row, temper, stage->own_x);
    token.entropy = entropy_of(row);
    const TokenResult<float> result = score(p, token);
    share_slope(&stage->block, row, temper, stage->own_x, token.logprob, result.grad_logprob,
                result.grad_entropy, 0.0f);
    give_signal(&stage->scored);
    if (rank == 0) store_statistics(p, turn.row, result);
  }
  // Only when all lanes have read what the blocks sent may they send again.
  __syncwarp();
}

// A team writes the gradient, and frees the stage.
template <class S, bool CAPPED>
__device__ void write(const PolicyLoss& p, const Turn<S, CAPPED>& turn) {
  Stage<CAPPED>* const stage = turn.stage;
  wait_for_turn(&stage->brought, turn.number);
  wait_for_turn(&stage->scored, turn.number);
  write_gradient(turn.slice, &stage->block, row_of<S>(p.call.grad, turn.place), stage->temper,
                 stage->token);
  if (member() == 0) give_signal(&stage->freed);
}

// Clusters take turns at rows, those without weight being nobody's turn; the gradient's row may be
// the logits'.
// - reads each row once into shared memory, the token's logit once more per block, and the row's
//   scalars; of a row of weight 0 nothing but the weight
// - writes each element of the gradient once, the token's twice, and the statistics of each row
// - never materialises log-probabilities, probabilities or a one-hot row
template <class S, bool CAPPED>
__global__ void __launch_bounds__(kPipelineThreads, 1)
    policy_loss_pipeline(const PolicyLoss p, const int log_blocks) {
  if constexpr (kHasSignals) {
    const unsigned clusters = gridDim.x >> log_blocks, first = blockIdx.x >> log_blocks;
    const int blocks = 1 << log_blocks, rank = int(blockIdx.x) % blocks;
    const unsigned rows = unsigned(p.call.logits.rows);
    const auto each_turn = [&](auto counted, auto uncounted) {
      unsigned n = 0;
      float weight = p.weight[first];
      for (unsigned row = first; row < rows; row += clusters) {
        const float next = row + clusters < rows ? p.weight[row + clusters] : 0.0f;
        const Turn<S, CAPPED> turn(p, row, n, rank, log_blocks);
        if (weight != 0)
          counted(turn), ++n;
        else
          uncounted(turn);
        weight = next;
      }
    };
    const auto pass = [](const Turn<S, CAPPED>&) {};
    if (threadIdx.x < kStages) Turn<S, CAPPED>::stage_at(threadIdx.x)->open();
    show_signals();
    cluster_arrive();
    cluster_wait();
    using Its = const Turn<S, CAPPED>&;
    const int warp = int(threadIdx.x) / kWarp;
    // No block leaves before the others' last sums have come, and so not before its own have gone.
    if (warp < kWarps)
      each_turn([&](Its turn) { sum(turn); }, pass);
    else if (warp < 2 * kWarps)
      each_turn([&](Its turn) { write(p, turn); },
                [&](Its turn) { write_zeros(turn.slice, row_of<S>(p.call.grad, turn.place)); });
    else if (warp == 2 * kWarps)
      each_turn([&](Its turn) { evaluate(p, turn, rank, blocks); }, pass);
    else
      each_turn([&](Its turn) { bring(p, turn); }, pass);
  }
}

// shape: of a device that has clusters.
template <class S>
int launch_pipeline(const PolicyLoss& p, const Shape& shape) {
  const auto kernel =
      p.call.softcap ? policy_loss_pipeline<S, true> : policy_loss_pipeline<S, false>;
  const int blocks = 1 << shape.log_blocks;
  const int bytes = pipeline_bytes(int(p.call.logits.vocab), sizeof(S), shape.log_blocks);
  if (p.call.logits.rows > kMostInGrid) return kTooManyRows;
  int clusters;
  if (const int error = resident_clusters(kernel, blocks, kPipelineThreads, bytes, &clusters))
    return error;
  clusters = int(p.call.logits.rows < clusters ? p.call.logits.rows : clusters);
  return launch(kernel, dim3(clusters * blocks), blocks, kPipelineThreads, bytes, p.call.stream, p,
                shape.log_blocks);
}

}  // namespace rlkern
