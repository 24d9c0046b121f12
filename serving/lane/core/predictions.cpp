// Reads each row's class and confidence from the outputs of a batch, and its ink from the inputs.
//
// serving/predictions.py says why. Sums of floats are made in numpy's order, so that both ways to
// answer give the same bits.

#include "predictions.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "layout.h"
#include "status.h"

namespace lane {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
// How far a row of probabilities may be from adding up to 1, at fp16.
constexpr float kRounding = 5e-3F;

template <typename Value>
Value element(const Tensor& tensor, std::size_t index) {
  Value value;
  std::memcpy(&value, tensor.data.data() + index * sizeof value, sizeof value);
  return value;
}

// IEEE 754 binary16: 1 bit of sign, 5 of the exponent, 10 of the mantissa.
double from_half(std::uint16_t half) {
  const int exponent = half >> 10 & 31;
  const int mantissa = half & 1023;
  double size = std::ldexp(mantissa, -24);
  if (exponent == 31) {
    size = mantissa ? kNone : std::numeric_limits<double>::infinity();
  } else if (exponent > 0) {
    size = std::ldexp(1024 + mantissa, exponent - 25);
  }
  return half & 0x8000 ? -size : size;
}

const Tensor& output(const Outputs& outputs, const std::string& name) {
  for (const Tensor& tensor : outputs.tensors) {
    if (tensor.name == name) return tensor;
  }
  throw RunFailed("the model gave no output '" + name + "'");
}

[[noreturn]] void throw_unusable(const Tensor& tensor) {
  throw RunFailed("output '" + tensor.name + "' of datatype " + tensor.datatype + " with " +
                  std::to_string(tensor.shape.size()) + " dimensions tells no class");
}

void check_size(const Tensor& tensor) {
  std::size_t bytes = element_bytes(tensor.datatype);
  for (const std::int64_t size : tensor.shape) bytes *= static_cast<std::size_t>(size);
  if (bytes != tensor.data.size()) throw_unusable(tensor);
}

// Scores (N, C) of floats, a row at a time.
class Scores {
 public:
  explicit Scores(const Tensor& tensor) : tensor_(tensor) {
    const bool floats = tensor.datatype.compare(0, 2, "FP") == 0;
    if (!floats || tensor.shape.size() != 2 || tensor.shape[1] < 1) throw_unusable(tensor);
    check_size(tensor);
    row_.resize(static_cast<std::size_t>(tensor.shape[1]));
  }

  std::int64_t rows() const { return tensor_.shape[0]; }

  // Valid until the next is asked for.
  const std::vector<double>& row(std::int64_t index) {
    const std::size_t first = static_cast<std::size_t>(index) * row_.size();
    for (std::size_t i = 0; i < row_.size(); ++i) row_[i] = score(first + i);
    return row_;
  }

 private:
  double score(std::size_t index) const {
    switch (tensor_.datatype[2]) {
      case '1':
        return from_half(element<std::uint16_t>(tensor_, index));
      case '3':
        return static_cast<double>(element<float>(tensor_, index));
      default:
        return element<double>(tensor_, index);
    }
  }

  const Tensor& tensor_;
  std::vector<double> row_;
};

// As numpy has it: the first of the highest, and a NaN is higher than all.
std::int64_t argmax(const std::vector<double>& row) {
  std::size_t best = 0;
  for (std::size_t i = 0; i < row.size(); ++i) {
    if (std::isnan(row[i])) return static_cast<std::int64_t>(i);
    if (row[i] > row[best]) best = i;
  }
  return static_cast<std::int64_t>(best);
}

// Up to 128 floats in numpy's order: eight sums side by side, then the rest.
float sum_of_block(const float* values, std::size_t count) {
  float sums[8];
  std::copy(values, values + 8, sums);
  std::size_t i = 8;
  for (; i + 8 <= count; i += 8) {
    for (std::size_t k = 0; k < 8; ++k) sums[k] += values[i + k];
  }
  float sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) +
              ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  for (; i < count; ++i) sum += values[i];
  return sum;
}

// Pairwise, as numpy adds floats that lie side by side: numpy/_core/src/umath/loops_utils.h.src.
float sum_of(const float* values, std::size_t count) {
  if (count < 8) {
    float sum = 0;
    for (std::size_t i = 0; i < count; ++i) sum += values[i];
    return sum;
  }
  if (count <= 128) return sum_of_block(values, count);
  const std::size_t half = count / 2 - count / 2 % 8;
  return sum_of(values, half) + sum_of(values + half, count - half);
}

// Whether they are shares of one.
bool proper(const std::vector<float>& scores) {
  // A NaN or an infinity among them is in the sum, too.
  return std::abs(sum_of(scores.data(), scores.size()) - 1.0F) < kRounding &&
         *std::min_element(scores.begin(), scores.end()) >= 0;
}

// The highest of p ** (1 / temperature), made to add up to 1; `scores` are written over.
float calibrated(std::vector<float>& scores, float top, float exponent) {
  for (float& score : scores) score = std::pow(score / top, exponent);
  return 1.0F / sum_of(scores.data(), scores.size());
}

void set_labels(const Tensor& tensor, std::vector<Fact>& facts) {
  if (tensor.shape.size() != 1) {
    Scores scores(tensor);
    for (std::size_t i = 0; i < facts.size(); ++i) {
      facts[i].label = argmax(scores.row(static_cast<std::int64_t>(i)));
    }
    return;
  }
  const bool wide = tensor.datatype == "INT64";
  if (!wide && tensor.datatype != "INT32") throw_unusable(tensor);
  check_size(tensor);
  for (std::size_t i = 0; i < facts.size(); ++i) {
    facts[i].label = wide ? element<std::int64_t>(tensor, i) : element<std::int32_t>(tensor, i);
  }
}

// Those of rows that are no shares of one stay NaN.
void set_confidences(const Tensor& tensor, double temperature, std::vector<Fact>& facts) {
  if (!tensor.has_rows(static_cast<std::int64_t>(facts.size()))) return;
  Scores scores(tensor);
  const float exponent = static_cast<float>(1 / temperature);
  std::vector<float> row;
  for (std::size_t i = 0; i < facts.size(); ++i) {
    const std::vector<double>& exact = scores.row(static_cast<std::int64_t>(i));
    row.assign(exact.begin(), exact.end());
    if (!proper(row)) continue;
    const float top = *std::max_element(row.begin(), row.end());
    facts[i].confidence = facts[i].calibrated = static_cast<double>(top);
    if (temperature != 1) facts[i].calibrated = static_cast<double>(calibrated(row, top, exponent));
  }
}

constexpr std::uint64_t kEvenBytes = 0x00ff00ff00ff00ff;
constexpr std::uint64_t kEvenPairs = 0x0000ffff0000ffff;

// The sum of up to 128 times eight bytes, in four sums of 16 bits side by side, which are full
// then.
std::uint64_t sum_of_words(const std::byte* bytes, std::size_t words) {
  std::uint64_t sums = 0;
  for (std::size_t i = 0; i < words; ++i) {
    std::uint64_t word;
    std::memcpy(&word, bytes + 8 * i, sizeof word);
    sums += (word & kEvenBytes) + (word >> 8 & kEvenBytes);
  }
  const std::uint64_t pairs = (sums & kEvenPairs) + (sums >> 16 & kEvenPairs);
  return (pairs & 0xffffffff) + (pairs >> 32);
}

std::uint64_t sum_of_bytes(const std::byte* bytes, std::size_t count) {
  std::uint64_t sum = 0;
  while (count >= 8) {
    const std::size_t words = std::min<std::size_t>(count / 8, 128);
    sum += sum_of_words(bytes, words);
    bytes += 8 * words;
    count -= 8 * words;
  }
  for (std::size_t i = 0; i < count; ++i) sum += std::to_integer<std::uint64_t>(bytes[i]);
  return sum;
}

// The mean of each row's bytes as a share of 255. Of a model that takes a single image without a
// first dimension for rows, the mean of all of it.
void set_ink(const Bytes& images, std::int64_t images_rows, std::vector<Fact>& facts) {
  const std::size_t rows = facts.size();
  const bool one_each = rows == static_cast<std::size_t>(images_rows);
  if (rows == 0 || images.size == 0 || (rows != 1 && !one_each)) return;
  const std::size_t bytes = images.size / rows;
  for (std::size_t i = 0; i < rows; ++i) {
    const auto sum = static_cast<double>(sum_of_bytes(images.begin() + i * bytes, bytes));
    facts[i].ink = sum / (255.0 * static_cast<double>(bytes));
  }
}

void set_ink(const std::string& name, const Batch& batch, std::vector<Fact>& facts) {
  const std::vector<RowSpec>& specs = batch.layout->inputs;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].name == name) set_ink(batch.inputs[i], batch.rows, facts);
  }
}

}  // namespace

std::vector<Fact> facts(const PredictionPlan& plan, const Batch& batch, const Outputs& outputs) {
  const Tensor& classes = output(outputs, plan.class_output);
  if (classes.shape.empty() || classes.shape[0] < 0) throw_unusable(classes);
  std::vector<Fact> facts(static_cast<std::size_t>(classes.shape[0]), Fact{0, kNone, kNone, kNone});
  set_labels(classes, facts);
  if (!plan.score_output.empty()) {
    set_confidences(output(outputs, plan.score_output), plan.temperature, facts);
  }
  if (!plan.image_input.empty()) set_ink(plan.image_input, batch, facts);
  return facts;
}

Predicting::Predicting(std::shared_ptr<Executor> inner, PredictionPlan plan)
    : inner_(std::move(inner)), plan_(std::move(plan)) {}

std::vector<Bytes> Predicting::buffers(const Layout& layout, std::int64_t rows) {
  return inner_->buffers(layout, rows);
}

Outputs Predicting::run(std::shared_ptr<const Batch> batch) {
  Outputs outputs = inner_->run(batch);
  outputs.facts = facts(plan_, *batch, outputs);
  return outputs;
}

}  // namespace lane
