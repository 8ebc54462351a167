#include "ops/cc/embedding/rules/compressor.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

#include "ops/cc/embedding/base/cpu_clones.h"

namespace millrace {

void Compressor::Forward(const float* weights, int dim, int64_t, float* shown) const {
  std::memmove(shown, weights, static_cast<size_t>(dim) * sizeof(float));
}

void Compressor::Backward(const float*, int, int64_t, float*) const {}

namespace {

uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

float FloatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

constexpr uint32_t kInfinity = 0x7F800000;
constexpr uint32_t kQuietNan = 0x00400000;

// Drops the low `count` bits, rounding to nearest, ties to even.
uint32_t DropBits(uint32_t bits, int count) {
  const uint32_t odd = (bits >> count) & 1;
  return (bits + (1u << (count - 1)) - 1 + odd) >> count;
}

uint16_t HalfOf(float value) {
  const uint32_t sign = (BitsOf(value) >> 16) & 0x8000;
  const uint32_t magnitude = BitsOf(value) & 0x7FFFFFFF;
  uint32_t half;
  if (magnitude > kInfinity) {
    half = 0x7E00 | ((magnitude >> 13) & 0x3FF);  // quiet
  } else if (magnitude < BitsOf(0x1p-14f)) {
    half = BitsOf(FloatOf(magnitude) + 0.5f) - BitsOf(0.5f);  // the sum's last bit is that of a subnormal half
  } else {
    half = std::min(DropBits(magnitude - (112u << 23), 13), 0x7C00u);  // exponent bias 127 becomes 15
  }
  return static_cast<uint16_t>(sign | half);
}

float FloatOfHalf(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7FFFu;
  if (magnitude > 0x7C00) return FloatOf(sign | kInfinity | kQuietNan | ((magnitude << 13) & 0x7FFFFF));
  if (magnitude == 0x7C00) return FloatOf(sign | kInfinity);
  if (magnitude < 0x400) return FloatOf(sign | BitsOf(static_cast<float>(magnitude) * 0x1p-24f));
  return FloatOf(sign | ((magnitude << 13) + (112u << 23)));
}

uint16_t BfloatOf(float value) {
  const uint32_t bits = BitsOf(value);
  if ((bits & 0x7FFFFFFF) > kInfinity) return static_cast<uint16_t>((bits | kQuietNan) >> 16);
  return static_cast<uint16_t>(DropBits(bits, 16));
}

float FloatOfBfloat(uint16_t bfloat) { return FloatOf(static_cast<uint32_t>(bfloat) << 16); }

class Fp32 final : public Compressor {
 public:
  int Bytes(int dim) const override { return 4 * dim; }
  void Encode(const float* weights, int dim, uint8_t* codes) const override {
    std::memcpy(codes, weights, static_cast<size_t>(Bytes(dim)));
  }
  void Decode(const uint8_t* codes, int dim, float* weights) const override {
    std::memcpy(weights, codes, static_cast<size_t>(Bytes(dim)));
  }
};

#if defined(__x86_64__) && defined(__GNUC__)

// The processor's own conversions, eight weights at a time: how many of `dim` were done.
__attribute__((target("avx,f16c"))) int EncodeHalvesBy8(const float* weights, int dim, uint8_t* codes) {
  int i = 0;
  for (; i + 8 <= dim; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(weights + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + 2 * i), halves);
  }
  return i;
}

__attribute__((target("avx,f16c"))) int DecodeHalvesBy8(const uint8_t* codes, int dim, float* weights) {
  int i = 0;
  for (; i + 8 <= dim; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + 2 * i));
    _mm256_storeu_ps(weights + i, _mm256_cvtph_ps(halves));
  }
  return i;
}

bool ConvertsHalves() {
  static const bool converts = __builtin_cpu_supports("f16c") != 0;
  return converts;
}

#else

int EncodeHalvesBy8(const float*, int, uint8_t*) { return 0; }
int DecodeHalvesBy8(const uint8_t*, int, float*) { return 0; }
bool ConvertsHalves() { return false; }

#endif

class Fp16 final : public Compressor {
 public:
  int Bytes(int dim) const override { return 2 * dim; }
  void Encode(const float* weights, int dim, uint8_t* codes) const override {
    for (int i = ConvertsHalves() ? EncodeHalvesBy8(weights, dim, codes) : 0; i < dim; ++i) {
      const uint16_t half = HalfOf(weights[i]);
      std::memcpy(codes + 2 * i, &half, sizeof(half));
    }
  }
  void Decode(const uint8_t* codes, int dim, float* weights) const override {
    for (int i = ConvertsHalves() ? DecodeHalvesBy8(codes, dim, weights) : 0; i < dim; ++i) {
      uint16_t half;
      std::memcpy(&half, codes + 2 * i, sizeof(half));
      weights[i] = FloatOfHalf(half);
    }
  }
};

MILLRACE_CLONES void EncodeBf16(const float* weights, int dim, uint8_t* codes) {
  for (int i = 0; i < dim; ++i) {
    const uint16_t bfloat = BfloatOf(weights[i]);
    std::memcpy(codes + 2 * i, &bfloat, sizeof(bfloat));
  }
}

MILLRACE_CLONES void DecodeBf16(const uint8_t* codes, int dim, float* weights) {
  for (int i = 0; i < dim; ++i) {
    uint16_t bfloat;
    std::memcpy(&bfloat, codes + 2 * i, sizeof(bfloat));
    weights[i] = FloatOfBfloat(bfloat);
  }
}

class Bf16 final : public Compressor {
 public:
  int Bytes(int dim) const override { return 2 * dim; }
  void Encode(const float* weights, int dim, uint8_t* codes) const override { EncodeBf16(weights, dim, codes); }
  void Decode(const uint8_t* codes, int dim, float* weights) const override { DecodeBf16(codes, dim, weights); }
};

// Nearest number of steps, in [-128, 127]; halves go away from 0.
int StepsOf(float weight, float step) {
  const float steps = (weight + std::copysign(step / 2, weight)) / step;
  return steps == steps ? static_cast<int>(std::min(std::max(steps, -128.0f), 127.0f)) : 0;
}

MILLRACE_CLONES void EncodeInt8(const float* weights, int dim, float step, uint8_t* codes) {
  for (int i = 0; i < dim; ++i) codes[i] = static_cast<uint8_t>(StepsOf(weights[i], step));
}

// Signed codes of one byte, times `unit`.
MILLRACE_CLONES void DecodeBytes(const uint8_t* codes, int dim, float unit, float* weights) {
  for (int i = 0; i < dim; ++i) weights[i] = static_cast<float>(static_cast<int8_t>(codes[i])) * unit;
}

MILLRACE_CLONES void RoundToSteps(const float* weights, int dim, float step, float* shown) {
  for (int i = 0; i < dim; ++i) shown[i] = static_cast<float>(StepsOf(weights[i], step)) * step;
}

class Int8 final : public Compressor {
 public:
  explicit Int8(RuleParameters& take) : step_(static_cast<float>(take.Take("range", FLT_MIN, FLT_MAX)) / 128) {}
  int Bytes(int dim) const override { return dim; }
  void Encode(const float* weights, int dim, uint8_t* codes) const override { EncodeInt8(weights, dim, step_, codes); }
  void Decode(const uint8_t* codes, int dim, float* weights) const override { DecodeBytes(codes, dim, step_, weights); }
  bool trains_quantised() const override { return true; }
  void Forward(const float* weights, int dim, int64_t, float* shown) const override {
    RoundToSteps(weights, dim, step_, shown);
  }

 private:
  const float step_;
};

class OneBit final : public Compressor {
 public:
  explicit OneBit(RuleParameters& take)
      : step_size_(static_cast<int64_t>(take.Take("step_size", 1, 0x1p53))),
        init_scale_(take.Take("init_scale", FLT_MIN, HUGE_VAL)),
        max_scale_(take.Take("max_scale", FLT_MIN, HUGE_VAL)),
        amplitude_(static_cast<float>(take.Take("amplitude", FLT_MIN, FLT_MAX))),
        packed_(take.TakeFlag("packed")) {}
  int Bytes(int dim) const override { return packed_ ? (dim + 7) / 8 : dim; }
  void Encode(const float* weights, int dim, uint8_t* codes) const override {
    if (packed_) {
      std::fill_n(codes, Bytes(dim), uint8_t{0});
      for (int i = 0; i < dim; ++i) codes[i / 8] |= static_cast<uint8_t>((weights[i] > 0) << (i % 8));
    } else {
      for (int i = 0; i < dim; ++i) codes[i] = static_cast<uint8_t>(weights[i] > 0 ? 1 : -1);
    }
  }
  void Decode(const uint8_t* codes, int dim, float* weights) const override {
    if (packed_) {
      for (int i = 0; i < dim; ++i) weights[i] = (codes[i / 8] >> (i % 8)) & 1 ? amplitude_ : -amplitude_;
    } else {
      DecodeBytes(codes, dim, amplitude_, weights);
    }
  }
  bool trains_quantised() const override { return true; }
  void Forward(const float* weights, int dim, int64_t global_step, float* shown) const override {
    const float scale = ScaleAt(global_step);
    for (int i = 0; i < dim; ++i) shown[i] = amplitude_ * std::tanh(scale * weights[i]);
  }
  void Backward(const float* weights, int dim, int64_t global_step, float* gradient) const override {
    const float scale = ScaleAt(global_step);
    for (int i = 0; i < dim; ++i) {
      const float tanh = std::tanh(scale * weights[i]);
      gradient[i] *= amplitude_ * scale * (1 - tanh * tanh);
    }
  }

 private:
  float ScaleAt(int64_t global_step) const {
    const int64_t step = std::max<int64_t>(global_step, 0) / step_size_ * step_size_;
    return static_cast<float>(std::min(init_scale_ * std::sqrt(1 + 0.005 * static_cast<double>(step)), max_scale_));
  }

  const int64_t step_size_;
  const double init_scale_, max_scale_;
  const float amplitude_;
  const bool packed_;
};

}  // namespace

Status MakeCompressor(const std::string& where, const RuleConfig& rule, std::unique_ptr<Compressor>* result) {
  RuleParameters take(where, rule);
  if (rule.kind == "fp32") {
    *result = std::make_unique<Fp32>();
  } else if (rule.kind == "fp16") {
    *result = std::make_unique<Fp16>();
  } else if (rule.kind == "bf16") {
    *result = std::make_unique<Bf16>();
  } else if (rule.kind == "int8") {
    *result = std::make_unique<Int8>(take);
  } else if (rule.kind == "one_bit") {
    *result = std::make_unique<OneBit>(take);
  } else {
    return InvalidArgument(where + " '" + rule.kind + "' is unknown; choose from fp32, fp16, bf16, int8, one_bit");
  }
  return take.Finish();
}

}  // namespace millrace
