// The checks of a request say what the Python server's say: corpus/checks.tsv is what it said.
#include <doctest/doctest.h>

#include <sstream>

#include "corpus.h"
#include "signatures.h"

using namespace lane;

namespace {

std::string outcome(Checker& checker, const std::string& message) {
  InferRequest request;
  if (!parse(message, request)) return "passed on";
  const auto result = checker.check(request);
  if (const auto* checked = std::get_if<Checked>(&result)) {
    return "rows " + std::to_string(checked->rows);
  }
  const auto* refusal = std::get_if<Refusal>(&result);
  return refusal ? refusal->details : "passed on";
}

// Owns what its views are of.
struct Asked {
  explicit Asked(const std::string& file) : message(corpus_file("message/" + file)) {
    REQUIRE(parse(message, request));
  }
  std::string message;
  InferRequest request;
};

Checked checked(Checker& checker, const InferRequest& request) {
  return std::get<Checked>(checker.check(request));
}

}  // namespace

TEST_CASE("each request of the corpus is checked as the Python server checks it") {
  Checker digits(digits_signature()), pair(pair_signature());
  std::istringstream lines(corpus_file("checks.tsv"));
  std::string name, signature, expected;
  int count = 0;
  while (std::getline(lines, name, '\t') && std::getline(lines, signature, '\t') &&
         std::getline(lines, expected)) {
    CAPTURE(name);
    Checker& checker = signature == "pair" ? pair : digits;
    CHECK(outcome(checker, corpus_file("message/" + name)) == expected);
    ++count;
  }
  CHECK(count >= 30);
}

TEST_CASE("a refusal is the caller's fault") {
  Checker checker(digits_signature());
  Asked asked("datatype");
  const auto refusal = std::get<Refusal>(checker.check(asked.request));
  CHECK(refusal.code == Code::invalid_argument);
  CHECK(refusal.reason == Reason::invalid_input);
  CHECK(refusal.retry_after < 0);
}

TEST_CASE("a text has at most 1000 characters") {
  Checker checker(digits_signature());
  Asked asked("input-long-name");
  CHECK(std::get<Refusal>(checker.check(asked.request)).details.size() == 1000);
}

TEST_CASE("a request has all outputs, or those it names, in its order") {
  Checker checker(digits_signature());
  CHECK(checked(checker, Asked("image").request).outputs == std::vector<int>{0, 1});
  CHECK(checked(checker, Asked("outputs").request).outputs == std::vector<int>{1, 0, 1});
}

TEST_CASE("contents are in the model's order and in the message's own bytes") {
  Checker checker(pair_signature());
  for (const char* name : {"pair", "pair-reversed"}) {
    Asked asked(name);
    const Checked got = checked(checker, asked.request);
    const bool reversed = asked.request.inputs[0].name == "mask";
    REQUIRE(got.inputs.size() == 2);
    CHECK(got.inputs[reversed ? 1 : 0] ==
          reinterpret_cast<const std::byte*>(asked.request.raw[0].data()));
    CHECK(got.inputs[reversed ? 0 : 1] ==
          reinterpret_cast<const std::byte*>(asked.request.raw[1].data()));
    CHECK(got.layout->inputs[0] == RowSpec{"values", "FP32", {3}, 12});
    CHECK(got.layout->inputs[0].bytes == 12);
    CHECK(got.layout->inputs[1] == RowSpec{"mask", "BOOL", {2}, 2});
    CHECK(got.layout->inputs[1].bytes == 2);
  }
}

TEST_CASE("requests with rows of the same shape have the same layout") {
  Checker checker(pair_signature());
  const LayoutPtr layout = checked(checker, Asked("pair").request).layout;
  CHECK(checked(checker, Asked("pair-reversed").request).layout == layout);
  Asked wider("pair");
  wider.request.inputs[0].shape = {2, 1};
  wider.request.raw[0] = wider.request.raw[0].substr(0, 8);
  CHECK(checked(checker, wider.request).layout != layout);
}

TEST_CASE("beyond 64 layouts that are in use a request is passed on, and unused ones make room") {
  Checker checker(pair_signature());
  Asked asked("pair");
  const std::string contents(1024, '\0');
  const auto check = [&](std::int64_t columns) {
    asked.request.inputs[0].shape = {2, columns};
    const std::size_t bytes = 2 * 4 * static_cast<std::size_t>(columns);
    asked.request.raw[0] = std::string_view(contents).substr(0, bytes);
    return checker.check(asked.request);
  };
  std::vector<LayoutPtr> used;
  for (int columns = 1; columns <= 64; ++columns) {
    used.push_back(std::get<Checked>(check(columns)).layout);
  }
  CHECK(std::holds_alternative<PassOn>(check(65)));
  CHECK(std::get<Checked>(check(64)).layout == used[63]);
  used[10].reset();
  CHECK(std::get<Checked>(check(65)).layout->inputs[0].shape == std::vector<std::int64_t>{65});
  used[20].reset();
  CHECK(std::get<Checked>(check(66)).layout->inputs[0].shape == std::vector<std::int64_t>{66});
  CHECK(std::get<Checked>(check(64)).layout == used[63]);
}

TEST_CASE("a signature that the lane does not take is passed on whatever is asked") {
  Asked asked("image");
  const TensorSpec images{"images", "UINT8", {-1, 28, 28}}, labels{"labels", "INT64", {-1}};
  const TensorSpec words{"words", "BYTES", {-1}}, fixed{"images", "UINT8", {1, 28, 28}};
  const std::vector<Signature> signatures{
      {"text", "1", {words}, {labels}, {}},
      {"text", "1", {images}, {words}, {}},
      {"fixed", "1", {fixed}, {labels}, {}},
      {"scalar", "1", {{"images", "UINT8", {}}}, {labels}, {}},
      {"none", "1", {}, {labels}, {}},
  };
  for (const Signature& signature : signatures) {
    Checker checker(signature);
    CHECK(std::holds_alternative<PassOn>(checker.check(asked.request)));
  }
}

TEST_CASE("elements have the sizes of V2's datatypes") {
  CHECK(element_bytes("BOOL") == 1);
  CHECK(element_bytes("FP16") == 2);
  CHECK(element_bytes("UINT32") == 4);
  CHECK(element_bytes("FP64") == 8);
  CHECK(element_bytes("BYTES") == 0);
  CHECK(element_bytes("fp32") == 0);
}
