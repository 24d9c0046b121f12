// Writing a ModelInferResponse from a request's rows of a batch's outputs.
//
// Fields go in the order of their numbers, as protobuf's own encoders write them: same bytes.
#include <algorithm>
#include <limits>
#include <optional>

#include "grpc.h"
#include "message.h"
#include "protobuf.h"
#include "signature.h"

namespace lane {
namespace {

constexpr std::string_view kPredictionIds = "prediction_ids";

// A model gives its outputs in the order of its signature: so the first look finds it.
const Tensor* tensor_of(const Signature& signature, const Outputs& outputs, std::size_t index) {
  const std::string& name = signature.outputs[index].name;
  const auto& tensors = outputs.tensors;
  if (index < tensors.size() && tensors[index].name == name) return &tensors[index];
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const Tensor& tensor) { return tensor.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

// Bytes that datatype and shape take; nothing where there is no such number.
std::optional<std::size_t> bytes_of(const Tensor& tensor) {
  std::size_t bytes = element_bytes(tensor.datatype);
  if (bytes == 0) return std::nullopt;
  for (const std::int64_t size : tensor.shape) {
    if (size < 0 || __builtin_mul_overflow(bytes, size, &bytes)) return std::nullopt;
  }
  return bytes;
}

bool holds(const Tensor& tensor, const Answer& answer) {
  return !tensor.shape.empty() && answer.first >= 0 && answer.rows >= 0 &&
         answer.rows <= tensor.shape[0] && answer.first <= tensor.shape[0] - answer.rows;
}

// One response, laid out by one function for its size and for its bytes: a Sizer or a Writer.
struct Response {
  const Signature& signature;
  std::string_view id;
  const std::vector<int>& outputs;
  const Answer& answer;
  const std::optional<std::string>& prediction_ids;

  const Tensor* tensor(int output) const {
    return tensor_of(signature, *answer.outputs, static_cast<std::size_t>(output));
  }

  bool possible() const {
    return answer.outputs && std::all_of(outputs.begin(), outputs.end(), [&](int output) {
             const Tensor* found = tensor(output);
             return found != nullptr && holds(*found, answer);
           });
  }

  template <typename Sink>
  void put(Sink& sink) const {
    sink.text(bytes_tag(1), signature.name);
    sink.text(bytes_tag(2), signature.version);
    sink.text(bytes_tag(3), id);
    if (prediction_ids) put_prediction_ids(sink, *prediction_ids);
    for (const int output : outputs) {
      const Tensor& whole = *tensor(output);
      Sizer described;
      put_described(described, output, whole.shape);
      sink.begin(bytes_tag(5), described.size());
      put_described(sink, output, whole.shape);
    }
    for (const int output : outputs) sink.bytes(bytes_tag(6), contents(*tensor(output)));
  }

  // The entry of the map of parameters: its key, and an InferParameter with string_param.
  template <typename Sink>
  void put_prediction_ids(Sink& sink, const std::string& ids) const {
    Sizer parameter;
    parameter.bytes(bytes_tag(3), ids);
    Sizer key;
    key.bytes(bytes_tag(1), kPredictionIds);
    Sizer head;
    head.begin(bytes_tag(2), parameter.size());
    sink.begin(bytes_tag(4), key.size() + head.size() + parameter.size());
    sink.bytes(bytes_tag(1), kPredictionIds);
    sink.begin(bytes_tag(2), parameter.size());
    sink.bytes(bytes_tag(3), ids);
  }

  // An InferOutputTensor without contents.
  template <typename Sink>
  void put_described(Sink& sink, int output, const std::vector<std::int64_t>& shape) const {
    const TensorSpec& spec = signature.outputs[static_cast<std::size_t>(output)];
    sink.text(bytes_tag(1), spec.name);
    sink.text(bytes_tag(2), spec.datatype);
    Sizer sizes;
    put_sizes(sizes, shape);
    sink.begin(bytes_tag(3), sizes.size());
    put_sizes(sink, shape);
  }

  // Packed; the first dimension is the request's own rows.
  template <typename Sink>
  void put_sizes(Sink& sink, const std::vector<std::int64_t>& shape) const {
    sink.varint(static_cast<std::uint64_t>(answer.rows));
    for (std::size_t index = 1; index < shape.size(); ++index) {
      sink.varint(static_cast<std::uint64_t>(shape[index]));
    }
  }

  std::string_view contents(const Tensor& whole) const {
    const std::size_t row = whole.row_bytes();
    const auto* data = reinterpret_cast<const char*>(whole.data.data());
    return std::string_view(data, whole.data.size())
        .substr(static_cast<std::size_t>(answer.first) * row,
                static_cast<std::size_t>(answer.rows) * row);
  }
};

}  // namespace

std::string encode(const Signature& signature, std::string_view id, const std::vector<int>& outputs,
                   const Answer& answer, const std::optional<std::string>& prediction_ids) {
  const Response response{signature, id, outputs, answer, prediction_ids};
  std::string out;
  if (!response.possible()) return out;
  Sizer sizer;
  response.put(sizer);
  if (sizer.size() > std::numeric_limits<std::uint32_t>::max()) return out;
  const std::string prefix = frame_prefix(sizer.size());
  out.reserve(prefix.size() + sizer.size());
  out.append(prefix);
  Writer writer(out);
  response.put(writer);
  return out;
}

bool fits(const Signature& signature, const std::vector<int>& requested, const Outputs& outputs,
          std::int64_t rows) {
  for (const int output : requested) {
    const auto index = static_cast<std::size_t>(output);
    const Tensor* tensor = tensor_of(signature, outputs, index);
    if (tensor == nullptr || tensor->datatype != signature.outputs[index].datatype) return false;
    if (!tensor->has_rows(rows) || bytes_of(*tensor) != tensor->data.size()) return false;
  }
  return true;
}

}  // namespace lane
