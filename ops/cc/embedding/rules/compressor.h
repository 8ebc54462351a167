// Codes of a segment's weights: what a serving table stores, and what a training table shows in its place.
#ifndef MILLRACE_EMBEDDING_COMPRESSOR_H_
#define MILLRACE_EMBEDDING_COMPRESSOR_H_

#include <cstdint>
#include <memory>
#include <string>

#include "ops/cc/embedding/rules/rule_config.h"
#include "ops/cc/embedding/base/status.h"

namespace millrace {

// Stateless and thread-safe. Codes may lie at any address; any bytes decode to some weights.
class Compressor {
 public:
  virtual ~Compressor() = default;

  // Size of the codes of `dim` weights.
  virtual int Bytes(int dim) const = 0;
  virtual void Encode(const float* weights, int dim, uint8_t* codes) const = 0;
  virtual void Decode(const uint8_t* codes, int dim, float* weights) const = 0;

  // Quantisation-aware training: a model sees Forward of the weights, and the optimizer Backward of the gradient. Both
  // may be in place. Where this is false they change nothing.
  virtual bool trains_quantised() const { return false; }
  virtual void Forward(const float* weights, int dim, int64_t global_step, float* shown) const;
  virtual void Backward(const float* weights, int dim, int64_t global_step, float* gradient) const;
};

// Kinds and their numbers (defaults in Python):
//   fp32, fp16, bf16: rounded to nearest, ties to even
//   int8: range. 256 steps of range / 128 from -range on; what lies beyond is cut off, NaN becomes 0
//   one_bit: step_size, init_scale, max_scale, amplitude, packed. The sign times amplitude, in a byte or, packed, in a
//     bit. Training sees amplitude * tanh(scale * w) with a scale that grows with the step (HashNet, Cao et al. 2017)
// `where` begins the message of an error, as in "table 'movies', segment 0: compressor".
Status MakeCompressor(const std::string& where, const RuleConfig& rule, std::unique_ptr<Compressor>* result);

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_COMPRESSOR_H_
