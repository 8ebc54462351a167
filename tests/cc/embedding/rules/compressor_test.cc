// Codes of weights and quantisation-aware training.
#include "ops/cc/embedding/rules/compressor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "tests/cc/covers.h"

namespace millrace {
namespace {

const RuleConfig kFp16{"fp16", {}};

RuleConfig Int8(double range) { return {"int8", {{"range", range}}}; }

RuleConfig OneBit(double amplitude, double step_size = 200, bool packed = false, double max_scale = 10000) {
  return {"one_bit",
          {{"step_size", step_size},
           {"init_scale", 1},
           {"max_scale", max_scale},
           {"amplitude", amplitude},
           {"packed", packed ? 1 : 0}}};
}

std::vector<RuleConfig> AllRules() {
  return {{"fp32", {}}, kFp16, {"bf16", {}}, Int8(1), OneBit(0.1), OneBit(0.1, 200, true)};
}

std::unique_ptr<Compressor> MakeRule(const RuleConfig& rule) {
  std::unique_ptr<Compressor> compressor;
  const Status made = MakeCompressor("segment 0: compressor", rule, &compressor);
  EXPECT_TRUE(made.ok()) << made.message();
  return compressor;
}

std::vector<uint8_t> Encode(const Compressor& compressor, const std::vector<float>& weights) {
  std::vector<uint8_t> codes(compressor.Bytes(weights.size()));
  compressor.Encode(weights.data(), weights.size(), codes.data());
  return codes;
}

std::vector<float> Decode(const Compressor& compressor, const std::vector<uint8_t>& codes, int dim) {
  std::vector<float> weights(dim);
  compressor.Decode(codes.data(), dim, weights.data());
  return weights;
}

std::vector<float> RoundTrip(const RuleConfig& rule, const std::vector<float>& weights) {
  const auto compressor = MakeRule(rule);
  return Decode(*compressor, Encode(*compressor, weights), weights.size());
}

float Forward(const Compressor& compressor, float weight, int64_t step) {
  compressor.Forward(&weight, 1, step, &weight);
  return weight;
}

float Backward(const Compressor& compressor, float weight, float gradient, int64_t step) {
  compressor.Backward(&weight, 1, step, &gradient);
  return gradient;
}

std::vector<float> EveryHalf(const Compressor& half) {
  std::vector<uint8_t> codes(2 << 16);
  for (int i = 0; i < 1 << 16; ++i) {
    const auto code = static_cast<uint16_t>(i);
    std::memcpy(codes.data() + 2 * i, &code, 2);
  }
  return Decode(half, codes, 1 << 16);
}

COVERS("emb:Q1")
TEST(Int8, Q1CutsOffAndTakesNanAsZero) {
  const std::vector<float> weights{100, 0, 3.5, -100, std::nanf("")};
  EXPECT_EQ(Encode(*MakeRule(Int8(5)), weights), (std::vector<uint8_t>{127, 0, 90, 128, 0}));
  EXPECT_EQ(RoundTrip(Int8(5), weights), (std::vector<float>{4.9609375, 0, 3.515625, -5, 0}));
}

COVERS("emb:Q2")
TEST(Int8, Q2RoundsToTheNearestStep) {
  const float step = 5.0f / 128;
  EXPECT_EQ(RoundTrip(Int8(5), {1.4f * step, 1.6f * step, -1.4f * step, -1.6f * step}),
            (std::vector<float>{step, 2 * step, -step, -2 * step}));
}

COVERS("emb:Q3")
TEST(Int8, Q3TheUpperEndIsOneStepShort) {
  EXPECT_EQ(RoundTrip(Int8(1), {1, 0.5, -1}), (std::vector<float>{0.9921875, 0.5, -1}));
}

TEST(Int8, TrainingSeesTheCodesAndPassesGradientsThrough) {
  const auto compressor = MakeRule(Int8(5));
  EXPECT_TRUE(compressor->trains_quantised());
  for (const float weight : {100.0f, 0.0f, 3.5f, -0.061f, HUGE_VALF, std::nanf("")}) {
    EXPECT_EQ(Forward(*compressor, weight, 7), RoundTrip(Int8(5), {weight})[0]);
  }
  EXPECT_EQ(Backward(*compressor, 3, 1.25f, 7), 1.25f);
}

COVERS("emb:Q4")
TEST(Fp16, Q4KeepsThreeDigits) {
  const std::vector<float> decoded = RoundTrip(kFp16, {0.1f, 0.2f, 10000});
  EXPECT_NEAR(decoded[0], 0.1, 1e-4);
  EXPECT_NEAR(decoded[1], 0.2, 1e-4);
  EXPECT_NEAR(decoded[2], 10000, 1e-4);
}

TEST(Fp16, KnownValues) {
  const float infinity = HUGE_VALF;
  const std::vector<std::pair<float, uint16_t>> cases{{0, 0},
                                                      {-0.0f, 0x8000},
                                                      {1, 0x3C00},
                                                      {-2, 0xC000},
                                                      {1.0f / 3, 0x3555},
                                                      {65504, 0x7BFF},
                                                      {65519.996f, 0x7BFF},
                                                      {65520, 0x7C00},
                                                      {-1e30f, 0xFC00},
                                                      {infinity, 0x7C00},
                                                      {0x1p-14f, 0x0400},
                                                      {0x1.ff8p-15f, 0x03FF},
                                                      {0x1p-24f, 0x0001},
                                                      {0x1p-25f, 0x0000},
                                                      {0x1.8p-24f, 0x0002},
                                                      {1 + 0x1p-11f, 0x3C00},
                                                      {1 + 0x1.8p-10f, 0x3C02},
                                                      {1e-40f, 0x0000}};
  const auto compressor = MakeRule(kFp16);
  for (const auto& [weight, half] : cases) {
    for (const int dim : {1, 8}) {
      const std::vector<uint8_t> codes = Encode(*compressor, std::vector<float>(dim, weight));
      uint16_t code;
      std::memcpy(&code, codes.data() + 2 * (dim - 1), 2);
      EXPECT_EQ(code, half) << weight << " among " << dim;
    }
  }
  EXPECT_TRUE(std::isnan(RoundTrip(kFp16, {std::nanf("")})[0]));
}

TEST(Fp16, EveryHalfComesBackAsItself) {
  const auto compressor = MakeRule(kFp16);
  const std::vector<float> halves = EveryHalf(*compressor);
  const std::vector<uint8_t> codes = Encode(*compressor, halves);
  for (int i = 0; i < 1 << 16; ++i) {
    uint16_t code;
    std::memcpy(&code, codes.data() + 2 * i, 2);
    ASSERT_EQ(code, std::isnan(halves[i]) ? i | 0x200 : i);
  }
}

// Eight weights at a time take the processor's instructions where it has them, one takes plain code.
TEST(Fp16, EightAtATimeAndOneAtATimeGiveTheSameBits) {
  const auto compressor = MakeRule(kFp16);
  const std::vector<float> halves = EveryHalf(*compressor);
  std::vector<float> weights;
  for (int i = 0; i + 1 < 1 << 16; ++i) {
    const float middle = halves[i] + (halves[i + 1] - halves[i]) / 2;
    weights.insert(weights.end(), {halves[i], middle, std::nextafter(middle, HUGE_VALF), std::nextafter(middle, 0.0f)});
  }
  std::mt19937 random(5);
  for (int i = 0; i < 200000; ++i) {
    const uint32_t bits = random();
    float weight;
    std::memcpy(&weight, &bits, sizeof(weight));
    weights.push_back(weight);
  }
  weights.resize(weights.size() / 8 * 8);
  const std::vector<uint8_t> together = Encode(*compressor, weights);
  const std::vector<float> decoded = Decode(*compressor, together, weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    uint8_t code[2];
    float alone;
    compressor->Encode(&weights[i], 1, code);
    compressor->Decode(code, 1, &alone);
    ASSERT_EQ(std::memcmp(code, together.data() + 2 * i, 2), 0) << weights[i];
    ASSERT_EQ(std::memcmp(&alone, &decoded[i], sizeof(alone)), 0) << weights[i];
  }
}

TEST(Bf16, RoundsToNearestEven) {
  EXPECT_EQ(RoundTrip({"bf16", {}}, {1, -1.5, 1 + 0x1p-8f, 1 + 0x1.8p-7f, 1 + 0x1.02p-8f, -HUGE_VALF,
                                     std::numeric_limits<float>::max()}),
            (std::vector<float>{1, -1.5, 1, 1 + 0x1p-6f, 1 + 0x1p-7f, -HUGE_VALF, HUGE_VALF}));
  EXPECT_TRUE(std::isnan(RoundTrip({"bf16", {}}, {std::nanf("")})[0]));
}

TEST(Fp32, KeepsAllBits) {
  const std::vector<float> weights{0.1f, -1e-40f, HUGE_VALF};
  EXPECT_EQ(RoundTrip({"fp32", {}}, weights), weights);
}

COVERS("emb:Q5")
TEST(OneBit, Q5KeepsTheSign) {
  const std::vector<float> weights{100, 0.1f, 1e-5f, 0, -1e-5f, -0.1f, -100}, signs{1, 1, 1, -1, -1, -1, -1};
  EXPECT_EQ(RoundTrip(OneBit(1), weights), signs);
  EXPECT_EQ(RoundTrip(OneBit(1, 200, true), weights), signs);
}

TEST(OneBit, PacksEightDimsIntoAByte) {
  const auto compressor = MakeRule(OneBit(0.5, 200, true));
  EXPECT_EQ(compressor->Bytes(8), 1);
  EXPECT_EQ(compressor->Bytes(9), 2);
  const std::vector<float> weights{1, -1, -1, 1, -1, -1, -1, 1, 1};
  EXPECT_EQ(Encode(*compressor, weights), (std::vector<uint8_t>{0x89, 0x01}));
  EXPECT_EQ(RoundTrip(OneBit(0.5, 200, true), weights),
            (std::vector<float>{0.5, -0.5, -0.5, 0.5, -0.5, -0.5, -0.5, 0.5, 0.5}));
}

COVERS("emb:Q6")
TEST(OneBit, Q6TrainingSeesASoftSign) {
  const auto compressor = MakeRule(OneBit(0.1));
  EXPECT_TRUE(compressor->trains_quantised());
  EXPECT_NEAR(Forward(*compressor, 1, 0), 0.07615941, 1e-6);
  EXPECT_NEAR(Forward(*compressor, 2, 0), 0.09640275, 1e-6);
}

COVERS("emb:Q7")
TEST(OneBit, Q7TheGradientIsScaledAsTheSoftSign) {
  const auto compressor = MakeRule(OneBit(0.1, 1000));
  EXPECT_NEAR(Backward(*compressor, 2, 1, 0), 0.00706508, 1e-6);
  EXPECT_NEAR(Backward(*compressor, 2, 2, 999), 0.01413016, 1e-6);
}

COVERS("emb:Q8")
TEST(OneBit, Q8TheScaleGrowsWithTheStep) {
  const auto compressor = MakeRule(OneBit(0.1, 1000));
  EXPECT_NEAR(Backward(*compressor, 2, 100, 1000) / 0.0054426, 1, 1e-3);
  EXPECT_NEAR(Backward(*compressor, 2, 200, 1001) / 0.0108852, 1, 1e-3);
  EXPECT_NEAR(Forward(*compressor, 2, 1001), 0.09998888, 1e-6);
}

COVERS("emb:Q9")
TEST(OneBit, Q9TheScaleIsAFunctionOfTheStepAlone) {
  const auto compressor = MakeRule(OneBit(1, 100));
  const float tiny = 1e-4f;  // tanh(scale * tiny) is scale * tiny, near enough
  EXPECT_NEAR(Forward(*compressor, tiny, 100) / tiny, 1.2247449, 1e-5);
  EXPECT_NEAR(Forward(*compressor, tiny, 200) / tiny, 1.4142136, 1e-5);
  EXPECT_NEAR(Forward(*compressor, tiny, 199) / tiny, 1.2247449, 1e-5);
  EXPECT_NEAR(Forward(*compressor, tiny, -1) / tiny, 1, 1e-5);
  EXPECT_NEAR(Backward(*compressor, 1, 1, 100), 0.35840667, 1e-6);
  EXPECT_NEAR(Forward(*MakeRule(OneBit(1, 100, false, 1.25)), tiny, 100000) / tiny, 1.25, 1e-5);
}

COVERS("emb:Q10")
TEST(Compressor, Q10SegmentsLieBehindOneAnother) {
  const auto half = MakeRule(kFp16);
  const std::vector<float> weights{1, 2, 3, 4};
  std::vector<uint8_t> codes(half->Bytes(1) + half->Bytes(2));
  half->Encode(weights.data(), 1, codes.data());
  half->Encode(weights.data() + 1, 2, codes.data() + half->Bytes(1));
  std::vector<float> decoded(3);
  half->Decode(codes.data(), 1, decoded.data());
  half->Decode(codes.data() + half->Bytes(1), 2, decoded.data() + 1);
  EXPECT_EQ(decoded, (std::vector<float>{1, 2, 3}));
}

TEST(Compressor, CodesMayLieAtAnyAddress) {
  for (const RuleConfig& rule : AllRules()) {
    SCOPED_TRACE(rule.kind);
    const auto compressor = MakeRule(rule);
    std::vector<float> weights(19), decoded(19);
    for (int i = 0; i < 19; ++i) weights[i] = 0.0625f * static_cast<float>(i - 9);
    std::vector<uint8_t> codes(compressor->Bytes(19) + 2, 0xAB);
    compressor->Encode(weights.data(), 19, codes.data() + 1);
    compressor->Decode(codes.data() + 1, 19, decoded.data());
    EXPECT_EQ(decoded, RoundTrip(rule, weights));
    EXPECT_EQ(codes.front(), 0xAB);
    EXPECT_EQ(codes.back(), 0xAB);
  }
}

TEST(Compressor, RawWeightsAndGradientsWhereNothingIsQuantised) {
  for (const RuleConfig& rule : {RuleConfig{"fp32", {}}, kFp16, RuleConfig{"bf16", {}}}) {
    const auto compressor = MakeRule(rule);
    EXPECT_FALSE(compressor->trains_quantised());
    EXPECT_EQ(Forward(*compressor, 0.1f, 3), 0.1f);
    EXPECT_EQ(Backward(*compressor, 0.1f, 0.3f, 3), 0.3f);
  }
}

TEST(MakeCompressor, RefusesUnknownKindsAndNumbers) {
  const auto problem = [](const RuleConfig& rule) {
    std::unique_ptr<Compressor> compressor;
    return MakeCompressor("table 't', segment 0: compressor", rule, &compressor).message();
  };
  EXPECT_EQ(problem({"int4", {}}),
            "table 't', segment 0: compressor 'int4' is unknown; choose from fp32, fp16, bf16, int8, one_bit");
  EXPECT_EQ(problem({"fp16", {{"range", 1}}}), "table 't', segment 0: compressor fp16 has no 'range'");
  EXPECT_NE(problem(Int8(0)).find("'range' out of bounds"), std::string::npos);
  EXPECT_NE(problem(OneBit(0.1, 0)).find("'step_size' out of bounds"), std::string::npos);
}

}  // namespace
}  // namespace millrace
