// What one row of a request looks like. Requests with the same layout can share a batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace lane {

// One tensor without its first dimension, the rows.
struct RowSpec {
  std::string name;
  std::string datatype;              // of V2, "FP32"
  std::vector<std::int64_t> shape;  // of one row
  std::size_t bytes = 0;            // of one row

  bool operator==(const RowSpec& other) const {
    return name == other.name && datatype == other.datatype && shape == other.shape;
  }
};

// The inputs of a row, in the model's order.
struct Layout {
  std::vector<RowSpec> inputs;

  bool operator==(const Layout& other) const { return inputs == other.inputs; }
};

using LayoutPtr = std::shared_ptr<const Layout>;

// Bytes of one element; 0 for BYTES, whose elements have no size of their own, and for unknown
// ones.
std::size_t element_bytes(const std::string& datatype);

}  // namespace lane
