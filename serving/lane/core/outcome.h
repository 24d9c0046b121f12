// What comes of a request: an answer, or a refusal.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "clock.h"
#include "status.h"

namespace lane {

// An output of one batch, all rows of it, in the lane's own memory.
struct Tensor {
  std::string name;
  std::string datatype;              // of V2
  std::vector<std::int64_t> shape;  // with the rows
  std::vector<std::byte> data;

  // False for a scalar, and where there are not so many rows.
  bool has_rows(std::int64_t rows) const { return !shape.empty() && shape[0] == rows; }
  std::size_t row_bytes() const {
    return shape.empty() || shape[0] == 0 ? 0 : data.size() / shape[0];
  }
};

// What the model says of one row; the layout of serving/predictions.py's records.
struct Fact {
  std::int64_t label;
  double confidence;  // NaN where the model gives none
  double calibrated;
  double ink;
};

// What a run gave; `facts` are empty for a model without class labels.
struct Outputs {
  std::vector<Tensor> tensors;
  std::vector<Fact> facts;
};

// What one batch cost; durations in seconds, `rows` without those added to fill a bucket.
struct Stages {
  std::int64_t rows = 0;
  Seconds compute_input = 0;
  Seconds compute_infer = 0;
  Seconds compute_output = 0;

  Seconds seconds() const { return compute_input + compute_infer + compute_output; }
  bool operator==(const Stages& other) const {
    return rows == other.rows && compute_input == other.compute_input &&
           compute_infer == other.compute_infer && compute_output == other.compute_output;
  }
};

// A request's rows [first, first + rows) of a batch's outputs.
struct Answer {
  std::shared_ptr<const Outputs> outputs;
  std::int64_t first = 0;
  std::int64_t rows = 0;
  Seconds queue_seconds = 0;
  Seconds request_seconds = 0;  // from arrival
  Stages stages;
};

using Outcome = std::variant<Answer, Refusal>;

}  // namespace lane
