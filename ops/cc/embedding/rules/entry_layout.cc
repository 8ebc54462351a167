#include "ops/cc/embedding/rules/entry_layout.h"

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>

#include "ops/cc/embedding/base/fid.h"
#include "ops/cc/embedding/base/finite.h"

namespace millrace {

Status EntryLayout::Make(const TableConfig& config, EntryLayout* result) {
  *result = EntryLayout();
  result->seed_ = config.seed;
  result->serving_ = config.serving;
  int64_t floats = 0;
  const auto check_size = [&] {
    if (floats <= kMaxFloats) return Status();
    return InvalidArgument("table '" + config.name + "' has " + std::to_string(floats) +
                           " floats per entry or more, weights and optimizer state; at most " +
                           std::to_string(kMaxFloats));
  };
  for (const SegmentConfig& segment : config.segments) floats += segment.dim;
  MILLRACE_RETURN_IF_ERROR(check_size());
  result->dim_ = static_cast<int>(floats);
  int first_dim = 0;
  for (size_t s = 0; s < config.segments.size(); ++s) {
    const SegmentConfig& given = config.segments[s];
    const std::string where = "table '" + config.name + "', segment " + std::to_string(s) + ": ";
    Segment segment{};
    segment.dim = given.dim;
    segment.first_dim = first_dim;
    segment.delay_compensation = given.delay_compensation;
    segment.stochastic_rounding = given.stochastic_rounding;
    MILLRACE_RETURN_IF_ERROR(MakeOptimizer(where + "optimizer", given.optimizer, given.dim, &segment.optimizer));
    MILLRACE_RETURN_IF_ERROR(
        Initializer::Make(where + "initializer", given.initializer, config.seed, config.name, &segment.initializer));
    MILLRACE_RETURN_IF_ERROR(MakeCompressor(where + "compressor", given.compressor, &segment.compressor));
    segment.state_floats = segment.optimizer->StateFloats(given.dim);
    floats += config.serving ? 0 : segment.state_floats;
    MILLRACE_RETURN_IF_ERROR(check_size());
    segment.first_state = result->dim_ + result->state_floats_;
    segment.code_bytes = segment.compressor->Bytes(given.dim);
    segment.first_code = result->code_bytes_;
    first_dim += given.dim;
    result->state_floats_ += segment.state_floats;
    result->code_bytes_ += segment.code_bytes;
    if (!config.serving && segment.compressor->trains_quantised()) result->shows_raw_ = false;
    result->segments_.push_back(std::move(segment));
  }
  if (config.serving) result->state_floats_ = 0;
  return {};
}

void EntryLayout::Init(int64_t fid, char* entry) const {
  if (serving_) {
    std::vector<float> weights(dim_);
    FirstVector(fid, weights.data());
    Encode(weights.data(), entry);
    return;
  }
  for (const Segment& segment : segments_) {
    segment.initializer.Fill(fid, segment.first_dim, Weights(entry) + segment.first_dim, segment.dim);
  }
  InitState(entry);
}

void EntryLayout::InitState(char* entry) const {
  if (serving_) return;
  for (const Segment& segment : segments_) {
    segment.optimizer->InitState(Weights(entry) + segment.first_state, segment.dim);
  }
}

void EntryLayout::FirstVector(int64_t fid, float* weights) const {
  for (const Segment& segment : segments_) {
    segment.initializer.Fill(fid, segment.first_dim, weights + segment.first_dim, segment.dim);
  }
  if (!serving_) return;
  std::vector<char> codes(code_bytes_);
  Encode(weights, codes.data());
  Decode(codes.data(), weights);
}

void EntryLayout::WriteWeights(const float* weights, char* entry) const {
  if (serving_) {
    Encode(weights, entry);
  } else {
    CopyFloats(weights, dim_, Weights(entry));
  }
}

bool EntryLayout::AddWeights(const float* addends, char* entry) const {
  std::vector<float> weights(dim_);
  ReadWeights(entry, weights.data());
  for (int d = 0; d < dim_; ++d) weights[d] += addends[d];
  if (!AllFinite(weights.data(), dim_)) return false;
  WriteWeights(weights.data(), entry);
  return true;
}

void EntryLayout::Show(int64_t global_step, float* weights) const {
  if (shows_raw_) return;
  for (const Segment& segment : segments_) {
    if (!segment.compressor->trains_quantised()) continue;
    float* own = weights + segment.first_dim;
    segment.compressor->Forward(own, segment.dim, global_step, own);
  }
}

struct EntryLayout::Scratch {
  std::vector<float*> weights;
  std::vector<const float*> gradients;
  std::vector<float> own_gradients;
};

int64_t EntryLayout::Update(const UpdateBatch& batch) const {
  Scratch scratch;
  int64_t not_taken = 0;
  for (size_t s = 0; s < segments_.size(); ++s) not_taken += UpdateSegment(s, batch, &scratch);
  return not_taken;
}

int64_t EntryLayout::UpdateSegment(size_t index, const UpdateBatch& batch, Scratch* scratch) const {
  const Segment& segment = segments_[index];
  const bool quantised = segment.compressor->trains_quantised();
  const bool compensates = segment.delay_compensation != 0 && batch.read_weights != nullptr;
  scratch->weights.resize(batch.count);
  scratch->gradients.resize(batch.count);
  if (quantised || compensates) scratch->own_gradients.resize(batch.count * segment.dim);
  for (int64_t i = 0; i < batch.count; ++i) {
    float* weights = Weights(batch.entries[i]) + segment.first_dim;
    const float* gradient = batch.gradients[i] + segment.first_dim;
    scratch->weights[i] = weights;
    scratch->gradients[i] = gradient;
    if (!quantised && !compensates) continue;
    float* own = scratch->own_gradients.data() + i * segment.dim;
    CopyFloats(gradient, segment.dim, own);
    if (quantised) segment.compressor->Backward(weights, segment.dim, batch.global_step, own);
    if (compensates && batch.read_weights[i] != nullptr) {
      const float* read = batch.read_weights[i] + segment.first_dim;
      CompensateDelay(segment.delay_compensation, weights, read, own, segment.dim, own);
    }
    scratch->gradients[i] = own;
  }
  const int64_t not_taken = segment.optimizer->Update(
      scratch->weights.data(), segment.first_state - segment.first_dim, scratch->gradients.data(), batch.count,
      segment.dim, {batch.learning_rates[index], batch.global_step});
  if (!segment.stochastic_rounding) return not_taken;
  const uint64_t key = Mix64(seed_ + index) ^ Mix64(static_cast<uint64_t>(batch.global_step));
  for (int64_t i = 0; i < batch.count; ++i) {
    RoundToHalf(key ^ HashFid(batch.fids[i]), scratch->weights[i], segment.dim);
  }
  return not_taken;
}

void EntryLayout::Encode(const float* weights, char* codes) const {
  for (const Segment& segment : segments_) {
    segment.compressor->Encode(weights + segment.first_dim, segment.dim,
                               reinterpret_cast<uint8_t*>(codes + segment.first_code));
  }
}

void EntryLayout::Decode(const char* codes, float* weights) const {
  for (const Segment& segment : segments_) {
    segment.compressor->Decode(reinterpret_cast<const uint8_t*>(codes + segment.first_code), segment.dim,
                               weights + segment.first_dim);
  }
}

}  // namespace millrace
