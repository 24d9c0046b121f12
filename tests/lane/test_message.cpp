// What python-protobuf wrote is read, what is malformed or not for the lane is left, and answers
// are the bytes that the Python server sends.
#include <doctest/doctest.h>

#include <limits>

#include "corpus.h"
#include "grpc.h"
#include "message.h"
#include "protobuf.h"
#include "signatures.h"

using namespace lane;
using namespace std::string_literals;

namespace {

// A field of bytes, a string or a message.
std::string field(std::uint32_t number, const std::string& value) {
  std::string out;
  Writer(out).bytes(bytes_tag(number), value);
  return out;
}

std::string number(std::uint32_t field, std::uint64_t value) {
  std::string out;
  Writer writer(out);
  writer.varint(varint_tag(field));
  writer.varint(value);
  return out;
}

std::string parameter(const std::string& key, const std::string& value) {
  return field(4, field(1, key) + field(2, value));
}

// A message and what was read of it, which are views of it.
struct Parsed {
  explicit Parsed(std::string bytes) : message(std::move(bytes)) {
    REQUIRE(parse(message, request));
  }
  const InferRequest* operator->() const { return &request; }

  std::string message;
  InferRequest request;
};

bool parses(const std::string& message) {
  InferRequest request;
  return parse(message, request);
}

std::vector<std::byte> bytes(std::size_t size, std::size_t number, std::size_t below) {
  std::vector<std::byte> data(size);
  for (std::size_t index = 0; index < size; ++index) {
    data[index] = static_cast<std::byte>((index * 7 + number * 13) % below);
  }
  return data;
}

Tensor tensor(const std::string& name, const std::string& datatype, std::vector<std::int64_t> shape,
              std::size_t number) {
  std::size_t size = element_bytes(datatype);
  for (const std::int64_t dimension : shape) size *= static_cast<std::size_t>(dimension);
  return {name, datatype, std::move(shape), bytes(size, number, datatype == "BOOL" ? 2 : 251)};
}

std::shared_ptr<Outputs> digits(std::int64_t rows) {
  Outputs outputs{{tensor("probabilities", "FP32", {rows, 10}, 0),
                   tensor("labels", "INT64", {rows}, 1)},
                  {}};
  return std::make_shared<Outputs>(std::move(outputs));
}

std::shared_ptr<Outputs> pair(std::int64_t rows, std::int64_t columns) {
  Outputs outputs{{tensor("sums", "FP32", {rows, columns}, 0), tensor("flags", "BOOL", {rows}, 1)},
                  {}};
  return std::make_shared<Outputs>(std::move(outputs));
}

Answer answer(std::shared_ptr<const Outputs> outputs, std::int64_t first, std::int64_t rows) {
  Answer answer;
  answer.outputs = std::move(outputs);
  answer.first = first;
  answer.rows = rows;
  return answer;
}

std::string repeated(const std::string& id, int count) {
  std::string ids = id;
  for (int more = 1; more < count; ++more) ids += "," + id;
  return ids;
}

std::string framed(const std::string& message) { return frame_prefix(message.size()) + message; }

}  // namespace

TEST_CASE("all fields of a request are read") {
  const Parsed request(corpus_file("message/images"));
  CHECK(request->model_name == "digits");
  CHECK(request->model_version == "7");
  CHECK(request->id == "3 images");
  REQUIRE(request->inputs.size() == 1);
  CHECK(request->inputs[0].name == "images");
  CHECK(request->inputs[0].datatype == "UINT8");
  CHECK(request->inputs[0].shape == std::vector<std::int64_t>{3, 28, 28});
  REQUIRE(request->raw.size() == 1);
  CHECK(request->raw[0].size() == 3 * 784);
  CHECK(request->outputs.empty());
  CHECK(request->priority == 0);
  CHECK_FALSE(request->timeout);
}

TEST_CASE("priority and timeout are heeded, other parameters are not") {
  const Parsed request(corpus_file("message/parameters"));
  CHECK(request->priority == 2);
  CHECK(request->timeout == 1.5);
}

TEST_CASE("a request that was used before keeps nothing of the message before") {
  const std::string full = corpus_file("message/parameters") + corpus_file("message/outputs");
  InferRequest request;
  REQUIRE(parse(full, request));
  CHECK(request.inputs.size() == 2);
  CHECK(request.outputs.size() == 3);
  const std::string empty = field(5, "");
  REQUIRE(parse(empty, request));
  CHECK(request.model_name.empty());
  CHECK(request.priority == 0);
  CHECK(!request.timeout);
  CHECK(request.outputs.empty());
  CHECK(request.raw.empty());
  REQUIRE(request.inputs.size() == 1);
  CHECK(request.inputs[0].name.empty());
  CHECK(request.inputs[0].shape.empty());
}

TEST_CASE("of a scalar that is given twice the last counts, in any order of fields") {
  const std::string input = field(5, field(1, "a") + number(3, 2) + field(1, "b"));
  const Parsed request(field(7, "abc") + field(1, "one") + input + field(3, "id") +
                       field(1, "two"));
  CHECK(request->model_name == "two");
  CHECK(request->id == "id");
  CHECK(request->inputs[0].name == "b");
}

TEST_CASE("shapes are read packed, one by one, and mixed") {
  const Parsed request(field(5, number(3, 1) + field(3, "\x02\xac\x02") + number(3, ~0ull)));
  CHECK(request->inputs[0].shape == std::vector<std::int64_t>{1, 2, 300, -1});
}

TEST_CASE("unknown fields, and known ones of another wire type, are skipped") {
  const std::string fixed64 = "\xa1\x06" "12345678";
  const std::string fixed32 = "\xa5\x06" "1234";
  const Parsed request(fixed64 + field(1, "m") + fixed32 + number(100, 5) + field(101, "?") +
                       number(1, 7));
  CHECK(request->model_name == "m");
}

TEST_CASE("the last entry of a key replaces others, and within one entry values are merged") {
  const auto twice = [](const std::string& key, const std::string& one, const std::string& two) {
    return parameter(key, one) + parameter(key, two);
  };
  CHECK(Parsed(twice("priority", number(2, 5), number(5, 6)))->priority == 6);
  CHECK_FALSE(Parsed(twice("timeout", number(2, 5), number(5, 0)))->timeout);
  const std::string merged = field(2, number(2, 3)) + field(1, "priority") + field(2, "");
  CHECK(Parsed(field(4, merged))->priority == 3);
}

TEST_CASE("a priority beyond what fits is the largest that does") {
  const Parsed request(parameter("priority", number(5, ~0ull)));
  CHECK(request->priority == std::numeric_limits<std::int64_t>::max());
}

TEST_CASE("what is malformed is left to Python") {
  CHECK_FALSE(parses("\x0a"));                       // no length
  CHECK_FALSE(parses("\x0a\x02m"));                  // longer than the message
  CHECK_FALSE(parses("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"));
  CHECK_FALSE(parses("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"));  // more than 64 bits
  CHECK_FALSE(parses("\x80"));
  CHECK_FALSE(parses("\x8a\x80\x80\x80\x80\x00"s));  // a tag of six bytes
  CHECK_FALSE(parses("\x02\x00"s));                  // field 0
  CHECK_FALSE(parses("\x0b\x0c"));                   // a group
  CHECK_FALSE(parses("\xa1\x06" "1234567"));
  CHECK_FALSE(parses("\xa6\x06"));                   // wire type 6
  CHECK_FALSE(parses(field(5, field(3, "\x80"))));
  CHECK_FALSE(parses(field(4, field(1, "a") + field(2, "\x1a\x05"))));
}

TEST_CASE("text that is no UTF-8 is left to Python, wherever it is") {
  CHECK_FALSE(parses(field(1, "\xff")));
  CHECK_FALSE(parses(field(5, field(2, "\xc3"))));
  CHECK_FALSE(parses(field(6, field(1, "\xed\xa0\x80"))));
  CHECK_FALSE(parses(parameter("\x80", number(1, 1))));
  CHECK_FALSE(parses(parameter("a", field(3, "\xfe"))));
  CHECK(parses(parameter("größe", field(3, "größe"))));
}

TEST_CASE("UTF-8 is what RFC 3629 says") {
  for (const char* text :
       {"", "text", "gr\xc3\xb6\xc3\x9f" "e und mehr", "\xe2\x82\xac", "\xf0\x9f\x98\x80",
        "\xf4\x8f\xbf\xbf", "\xed\x9f\xbf", "\xee\x80\x80"}) {
    CHECK_MESSAGE(valid_utf8(text), text);
  }
  for (const char* text : {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80",
                           "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xe2\x82",
                           "\xe2\x82" "a", "12345678\xff", "\xc3\xc3"}) {
    CHECK_FALSE_MESSAGE(valid_utf8(text), text);
  }
}

TEST_CASE("what only Python takes is left to it") {
  for (const char* name : {"contents", "shared-memory", "classification", "priority-negative",
                           "timeout-negative", "timeout-text"}) {
    CHECK_FALSE_MESSAGE(parses(corpus_file("message/"s + name)), name);
  }
  CHECK_FALSE(parses(field(4, field(1, "a") + number(9, 1))));  // an entry with an unknown field
  CHECK_FALSE(parses(parameter("priority", "")));
  CHECK_FALSE(parses(parameter("priority", number(2, 1) + number(1, 1))));  // a bool, at last
}

TEST_CASE("more tensors or dimensions than any model has are left to Python") {
  std::string inputs, outputs, raw;
  for (int count = 0; count < 256; ++count) {
    inputs += field(5, "");
    outputs += field(6, "");
    raw += field(7, "");
  }
  CHECK(parses(inputs + outputs + raw));
  CHECK_FALSE(parses(inputs + field(5, "")));
  CHECK_FALSE(parses(outputs + field(6, "")));
  CHECK_FALSE(parses(raw + field(7, "")));
  CHECK(parses(field(5, field(3, std::string(64, '\1')))));
  CHECK_FALSE(parses(field(5, field(3, std::string(65, '\1')))));
}

TEST_CASE("answers are the bytes that the Python server sends") {
  struct Case {
    const char* file;
    Signature signature;
    Answer answer;
    std::vector<int> outputs = {0, 1};
    std::string id = {};
    std::optional<std::string> ids = {};
  };
  const Signature two = digits_signature(), other = pair_signature();
  const auto one = digits(1), eight = digits(8), many = digits(256), wide = pair(4, 300);
  const std::vector<Case> cases{
      {"one-row", two, answer(one, 0, 1)},
      {"id", two, answer(one, 0, 1), {0, 1}, "request-1"},
      {"id-beyond-ascii", two, answer(one, 0, 1), {0, 1}, "größe"},
      {"prediction-id", two, answer(one, 0, 1), {0, 1}, "", std::string(99, 'x')},
      {"some-rows", two, answer(eight, 2, 3), {0, 1}, "7", "a,b,c"},
      {"last-rows", two, answer(eight, 5, 3)},
      {"labels", two, answer(eight, 0, 8), {1}},
      {"other-order", two, answer(one, 0, 1), {1, 0}},
      {"twice", two, answer(one, 0, 1), {1, 1}},
      {"many-rows", two, answer(many, 20, 200), {0, 1}, "", repeated(std::string(99, 'y'), 200)},
      {"wide", other, answer(wide, 1, 2)},
      {"flags", other, answer(wide, 3, 1), {1}},
      {"no-elements", other, answer(pair(2, 0), 0, 2)},
  };
  for (const Case& each : cases) {
    CAPTURE(each.file);
    const std::string expected = framed(corpus_file("answer/"s + each.file));
    const std::string encoded =
        encode(each.signature, each.id, each.outputs, each.answer, each.ids);
    CHECK(encoded == expected);
    CHECK(encoded.capacity() <= std::max<std::size_t>(encoded.size(), 15));  // one allocation
  }
}

TEST_CASE("ids that are an empty text are sent, none are not") {
  const Answer one = answer(digits(1), 0, 1);
  const std::string none = encode(digits_signature(), "", {0, 1}, one, std::nullopt);
  const std::string empty = encode(digits_signature(), "", {0, 1}, one, "");
  const std::string entry = field(1, "prediction_ids") + field(2, field(3, ""));
  const std::string parameter = field(4, entry);
  CHECK(none.find("prediction_ids") == std::string::npos);
  CHECK(empty.find(parameter) != std::string::npos);
  CHECK(empty.size() == none.size() + parameter.size());
}

TEST_CASE("a model may give its outputs in another order than its signature") {
  auto outputs = digits(1);
  std::swap(outputs->tensors[0], outputs->tensors[1]);
  const std::string encoded =
      encode(digits_signature(), "", {0, 1}, answer(outputs, 0, 1), std::nullopt);
  CHECK(encoded == framed(corpus_file("answer/one-row")));
  CHECK(fits(digits_signature(), {0, 1}, *outputs, 1));
}

TEST_CASE("an answer without one of the outputs, or without the rows, is not encoded") {
  auto outputs = digits(2);
  CHECK(encode(digits_signature(), "", {0, 1}, answer(outputs, 1, 2), std::nullopt).empty());
  CHECK(encode(digits_signature(), "", {0, 1}, answer(nullptr, 0, 1), std::nullopt).empty());
  outputs->tensors.pop_back();
  CHECK(encode(digits_signature(), "", {0, 1}, answer(outputs, 0, 1), std::nullopt).empty());
}

TEST_CASE("outputs fit if each has its datatype, the rows, and the bytes of its shape") {
  const Signature signature = digits_signature();
  CHECK(fits(signature, {0, 1}, *digits(4), 4));
  CHECK_FALSE(fits(signature, {0, 1}, *digits(4), 5));
  auto outputs = digits(4);
  outputs->tensors.push_back(tensor("more", "FP32", {1}, 0));
  CHECK(fits(signature, {0, 1}, *outputs, 4));
  outputs->tensors[0].datatype = "FP64";
  CHECK_FALSE(fits(signature, {0, 1}, *outputs, 4));
  CHECK(fits(signature, {1, 1}, *outputs, 4));  // nobody asks for the other
  outputs = digits(4);
  outputs->tensors[1].shape = {};
  CHECK_FALSE(fits(signature, {0, 1}, *outputs, 4));
  outputs = digits(4);
  outputs->tensors[1].data.pop_back();
  CHECK_FALSE(fits(signature, {0, 1}, *outputs, 4));
  outputs = digits(4);
  outputs->tensors[0].shape = {4, std::int64_t{1} << 62, 4};
  CHECK_FALSE(fits(signature, {0, 1}, *outputs, 4));
  outputs->tensors.clear();
  CHECK_FALSE(fits(signature, {0, 1}, *outputs, 4));
}
