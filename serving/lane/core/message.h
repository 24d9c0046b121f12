// The V2 messages on the wire: ModelInferRequest in, ModelInferResponse out, parsed by hand.
//
// proto/inference.proto; https://protobuf.dev/programming-guides/encoding/
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "clock.h"
#include "outcome.h"

namespace lane {

// A ModelInferRequest as it arrived; every view is of the message's bytes.
struct InferRequest {
  struct Input {
    std::string_view name;
    std::string_view datatype;
    std::vector<std::int64_t> shape;
  };

  std::string_view model_name;
  std::string_view model_version;
  std::string_view id;
  std::int64_t priority = 0;          // the parameter; 0 leaves it to the server
  std::optional<Seconds> timeout;     // the parameter, which comes in microseconds
  std::vector<Input> inputs;
  std::vector<std::string_view> outputs;  // names
  std::vector<std::string_view> raw;      // raw_input_contents
};

// Reads the message; false where the lane leaves it to grpcio: whatever is malformed, or uses what
// the lane does not take (typed contents, classification, shared memory, parameters of tensors,
// text that is no UTF-8, a malformed `priority` or `timeout`).
bool parse(std::string_view message, InferRequest& request);

struct Signature;

// A gRPC-framed ModelInferResponse (5 bytes of prefix first) with an answer's own rows of the
// outputs; `outputs` are indices of the signature's, and of the answer's tensors by name.
// `prediction_ids` are joined by commas, and may be an empty text: that of one row whose class is
// none of the model's. Empty where the answer lacks one of the outputs or its rows (`fits` tells),
// or is beyond what a frame can hold.
std::string encode(const Signature& signature, std::string_view id, const std::vector<int>& outputs,
                   const Answer& answer, const std::optional<std::string>& prediction_ids);

// Whether a run gave each of these outputs, indices of the signature's, with so many rows and its
// datatype.
bool fits(const Signature& signature, const std::vector<int>& requested, const Outputs& outputs,
          std::int64_t rows);

}  // namespace lane
