// Of each row the lane says what the Python server says: corpus/predictions.txt is what that said.
#include "predictions.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <sstream>

#include "batch.h"
#include "corpus.h"
#include "layout.h"
#include "words.h"

using namespace lane;

namespace {

struct Case {
  std::string name;
  PredictionPlan plan;
  Batch batch;
  Outputs outputs;  // with the facts that are expected
};

Tensor read_tensor(std::istream& words) {
  Tensor tensor;
  std::string shape, data;
  words >> tensor.name >> tensor.datatype >> shape >> data;
  std::istringstream sizes(shape);
  for (std::string size; std::getline(sizes, size, ',');) tensor.shape.push_back(std::stoll(size));
  tensor.data = from_hex(data);
  return tensor;
}

void read_plan(std::istream& words, PredictionPlan& plan) {
  std::string scores, image, temperature;
  words >> plan.class_output >> scores >> image >> temperature;
  plan.score_output = name_of(scores);
  plan.image_input = name_of(image);
  plan.temperature = double_of(temperature);
}

Batch one_input(std::int64_t rows, const std::vector<std::byte>& bytes) {
  Batch batch;
  const std::size_t row_bytes = rows ? bytes.size() / static_cast<std::size_t>(rows) : 0;
  batch.layout = std::make_shared<const Layout>(
      Layout{{{"image", "UINT8", {static_cast<std::int64_t>(row_bytes)}, row_bytes}}});
  batch.rows = rows;
  batch.inputs = own_buffers(*batch.layout, rows);
  std::copy(bytes.begin(), bytes.end(), batch.inputs[0].begin());
  return batch;
}

Fact read_fact(std::istream& words) {
  Fact fact{};
  std::string confidence, calibrated, ink;
  words >> fact.label >> confidence >> calibrated >> ink;
  fact.confidence = double_of(confidence);
  fact.calibrated = double_of(calibrated);
  fact.ink = double_of(ink);
  return fact;
}

bool read_case(std::istream& words, Case& given) {
  given = Case();
  given.batch = one_input(0, {});
  for (std::string word; words >> word && word != "end";) {
    if (word == "case") words >> given.name;
    if (word == "plan") read_plan(words, given.plan);
    if (word == "output") given.outputs.tensors.push_back(read_tensor(words));
    if (word == "fact") given.outputs.facts.push_back(read_fact(words));
    if (word == "image") {
      std::string data;
      std::int64_t rows = 0;
      words >> rows >> data;
      given.batch = one_input(rows, from_hex(data));
    }
  }
  return !given.name.empty();
}

// Of doubles; a NaN is one like any other.
bool same(double left, double right) {
  return left == right || (std::isnan(left) && std::isnan(right));
}

// Units in the last place of a float.
double ulps_apart(double left, double right) {
  if (same(left, right)) return 0;
  const float near = static_cast<float>(left);
  return std::abs(left - right) / (std::nextafter(near, 2 * near) - near);
}

Tensor floats(const std::string& name, std::vector<std::int64_t> shape,
              const std::vector<float>& values) {
  const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
  return {name, "FP32", std::move(shape), {bytes, bytes + values.size() * sizeof(float)}};
}

struct Giving : Executor {
  explicit Giving(Outputs given) : outputs(std::move(given)) {}
  Outputs run(std::shared_ptr<const Batch>) override { return outputs; }
  Outputs outputs;
};

}  // namespace

TEST_CASE("of each row is said what the Python server says") {
  std::istringstream words(corpus_file("predictions.txt"));
  int cases = 0;
  for (Case given; read_case(words, given); ++cases) {
    CAPTURE(given.name);
    const auto told = facts(given.plan, given.batch, given.outputs);
    const auto& expected = given.outputs.facts;
    REQUIRE(told.size() == expected.size());
    for (std::size_t i = 0; i < told.size(); ++i) {
      CAPTURE(i);
      CHECK(told[i].label == expected[i].label);
      CHECK(same(told[i].confidence, expected[i].confidence));
      CHECK(ulps_apart(told[i].calibrated, expected[i].calibrated) <= 2);
      CHECK(same(told[i].ink, expected[i].ink));
    }
  }
  CHECK(cases == 21);
}

TEST_CASE("a run has the outputs of the model, and the facts of each row") {
  Predicting predicting(
      std::make_shared<Giving>(Outputs{{floats("scores", {2, 2}, {0.25, 0.75, 1, 0})}, {}}),
      {"scores", "scores", "", 1.0});
  const Outputs outputs = predicting.run(std::make_shared<Batch>(one_input(2, {})));
  CHECK(outputs.tensors[0].name == "scores");
  REQUIRE(outputs.facts.size() == 2);
  CHECK(outputs.facts[0].label == 1);
  CHECK(outputs.facts[0].confidence == 0.75);
  CHECK(outputs.facts[1].label == 0);
}

TEST_CASE("a model that does not give the output of its plan fails") {
  CHECK_THROWS_WITH_AS(facts({"labels", "", "", 1}, one_input(1, {}), {}),
                       "the model gave no output 'labels'", RunFailed);
}

TEST_CASE("an output that tells no class fails, whatever is wrong with it") {
  const Tensor without_columns = floats("out", {2, 0}, {});
  const Tensor of_three_dimensions = floats("out", {1, 1, 1}, {1});
  const Tensor of_one_dimension = floats("out", {1}, {1});
  const Tensor too_short = floats("out", {2, 2}, {1, 0});
  const Tensor scalar{"out", "INT64", {}, std::vector<std::byte>(8)};
  const Tensor short_labels{"out", "INT64", {2}, std::vector<std::byte>(8)};
  const Tensor text{"out", "BYTES", {1, 2}, {}};
  for (const Tensor& tensor : {without_columns, of_three_dimensions, of_one_dimension, too_short,
                               scalar, short_labels, text}) {
    CHECK_THROWS_AS(facts({"out", "", "", 1}, one_input(1, {}), {{tensor}, {}}), RunFailed);
  }
}

TEST_CASE("an empty batch has no facts") {
  CHECK(facts({"out", "out", "image", 1}, one_input(0, {}), {{floats("out", {0, 2}, {})}, {}})
            .empty());
}
