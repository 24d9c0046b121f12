// Reading a ModelInferRequest; encode.cpp writes the answer.
//
// What protobuf leaves open is as python-protobuf has it: what is given twice counts as given last,
// an unknown field, or a known one of another wire type, is skipped.
#include "message.h"

#include <limits>

#include "protobuf.h"

namespace lane {
namespace {

// What a message may hold before it is left to grpcio: no model comes near, and what is kept for
// the next message stays small.
constexpr std::size_t kMostEntries = 256;   // inputs, outputs, raw contents
constexpr std::size_t kMostDimensions = 64;  // as NumPy has it

// An InferParameter, as far as the lane wants to know.
struct Parameter {
  enum class Kind { none, int64, uint64, other };
  Kind kind = Kind::none;
  std::uint64_t bits = 0;
};

bool skip_text(Reader& reader) {
  std::string_view text;
  return reader.text(text);
}

// Fields are merged: of a oneof given twice, the last is it.
bool parse_parameter(std::string_view message, Parameter& parameter) {
  Reader reader(message);
  std::uint32_t tag = 0;
  while (!reader.done()) {
    if (!reader.tag(tag)) return false;
    bool read = false;
    Parameter::Kind kind = Parameter::Kind::other;
    switch (tag) {
      case varint_tag(1): read = reader.skip(tag); break;   // bool_param
      case fixed64_tag(4): read = reader.skip(tag); break;  // double_param
      case bytes_tag(3): read = skip_text(reader); break;   // string_param
      case varint_tag(2):
        kind = Parameter::Kind::int64;
        read = reader.varint(parameter.bits);
        break;
      case varint_tag(5):
        kind = Parameter::Kind::uint64;
        read = reader.varint(parameter.bits);
        break;
      default:
        kind = parameter.kind;
        read = reader.skip(tag);
    }
    if (!read) return false;
    parameter.kind = kind;
  }
  return true;
}

// serving/parameters.py; false where it is no whole number from 0, but perhaps text of digits.
bool whole(const Parameter& parameter, std::uint64_t& value) {
  value = parameter.bits;
  if (parameter.kind == Parameter::Kind::uint64) return true;
  return parameter.kind == Parameter::Kind::int64 && static_cast<std::int64_t>(value) >= 0;
}

bool heed(std::string_view key, const Parameter& parameter, InferRequest& request) {
  if (key != "priority" && key != "timeout") return true;
  std::uint64_t value = 0;
  if (!whole(parameter, value)) return false;
  if (key == "timeout") {
    request.timeout.reset();
    if (value != 0) request.timeout = static_cast<Seconds>(value) / 1e6;
  } else {
    constexpr std::uint64_t most = std::numeric_limits<std::int64_t>::max();
    request.priority = static_cast<std::int64_t>(value < most ? value : most);
  }
  return true;
}

// An entry of the map of parameters. One with unknown fields is itself unknown to python-protobuf,
// and left to it.
bool parse_entry(std::string_view message, InferRequest& request) {
  Reader reader(message);
  std::uint32_t tag = 0;
  std::string_view key, value;
  Parameter parameter;
  while (!reader.done()) {
    if (!reader.tag(tag)) return false;
    if (tag == bytes_tag(1)) {
      if (!reader.text(key)) return false;
    } else if (tag != bytes_tag(2) || !reader.bytes(value) || !parse_parameter(value, parameter)) {
      return false;
    }
  }
  return heed(key, parameter, request);
}

bool add_dimension(Reader& reader, std::vector<std::int64_t>& shape) {
  std::uint64_t size = 0;
  if (shape.size() == kMostDimensions || !reader.varint(size)) return false;
  shape.push_back(static_cast<std::int64_t>(size));
  return true;
}

bool add_dimensions(Reader& reader, std::vector<std::int64_t>& shape) {
  std::string_view packed;
  if (!reader.bytes(packed)) return false;
  Reader sizes(packed);
  while (!sizes.done()) {
    if (!add_dimension(sizes, shape)) return false;
  }
  return true;
}

bool parse_input(std::string_view message, InferRequest::Input& input) {
  Reader reader(message);
  std::uint32_t tag = 0;
  while (!reader.done()) {
    if (!reader.tag(tag)) return false;
    bool read = false;
    switch (tag) {
      case bytes_tag(1): read = reader.text(input.name); break;
      case bytes_tag(2): read = reader.text(input.datatype); break;
      case varint_tag(3): read = add_dimension(reader, input.shape); break;
      case bytes_tag(3): read = add_dimensions(reader, input.shape); break;
      case bytes_tag(4): return false;  // parameters
      case bytes_tag(5): return false;  // contents
      default: read = reader.skip(tag);
    }
    if (!read) return false;
  }
  return true;
}

bool parse_output(std::string_view message, std::string_view& name) {
  Reader reader(message);
  std::uint32_t tag = 0;
  while (!reader.done()) {
    if (!reader.tag(tag)) return false;
    if (tag == bytes_tag(2)) return false;  // parameters
    if (!(tag == bytes_tag(1) ? reader.text(name) : reader.skip(tag))) return false;
  }
  return true;
}

// Reads one message into a request that was used before. Inputs are overwritten in place, as their
// shapes have memory of their own.
class Parser {
 public:
  Parser(std::string_view message, InferRequest& request) : reader_(message), request_(request) {}

  bool parse() {
    std::uint32_t tag = 0;
    while (!reader_.done()) {
      if (!reader_.tag(tag) || !field(tag)) return false;
    }
    request_.inputs.resize(inputs_);
    return true;
  }

 private:
  bool field(std::uint32_t tag) {
    std::string_view value;
    switch (tag) {
      case bytes_tag(1): return reader_.text(request_.model_name);
      case bytes_tag(2): return reader_.text(request_.model_version);
      case bytes_tag(3): return reader_.text(request_.id);
      case bytes_tag(4): return reader_.bytes(value) && parse_entry(value, request_);
      case bytes_tag(5): return reader_.bytes(value) && add_input(value);
      case bytes_tag(6): return reader_.bytes(value) && add_output(value);
      case bytes_tag(7): return reader_.bytes(value) && add_raw(value);
      default: return reader_.skip(tag);
    }
  }

  bool add_input(std::string_view message) {
    if (inputs_ == kMostEntries) return false;
    if (inputs_ == request_.inputs.size()) request_.inputs.emplace_back();
    InferRequest::Input& input = request_.inputs[inputs_++];
    input.name = input.datatype = {};
    input.shape.clear();
    return parse_input(message, input);
  }

  bool add_output(std::string_view message) {
    if (request_.outputs.size() == kMostEntries) return false;
    return parse_output(message, request_.outputs.emplace_back());
  }

  bool add_raw(std::string_view contents) {
    if (request_.raw.size() == kMostEntries) return false;
    request_.raw.push_back(contents);
    return true;
  }

  Reader reader_;
  InferRequest& request_;
  std::size_t inputs_ = 0;
};

}  // namespace

bool parse(std::string_view message, InferRequest& request) {
  request.model_name = request.model_version = request.id = {};
  request.priority = 0;
  request.timeout.reset();
  request.outputs.clear();
  request.raw.clear();
  return Parser(message, request).parse();
}

}  // namespace lane
