// The lane's tensors as NumPy's arrays, and back. All of it under Python's lock.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "input_buffers.h"
#include "outcome.h"

namespace lane {

// How the facts of rows travel among the outputs of Python: serving/predictions.py's FACTS, RECORD.
struct FactsColumn {
  std::string name;
  pybind11::dtype dtype;
};

// Keeps what arrays lie over, as the object of Python that they belong to.
struct Memory {
  std::shared_ptr<const void> kept;
};

// Of V2, "FP32"; empty where V2 has none without Python's objects, or in another byte order.
std::string datatype_of(const pybind11::dtype& dtype);
// std::invalid_argument for one that `datatype_of` never gives.
pybind11::dtype dtype_of(const std::string& datatype);

// The value as an array with its elements one after the other, copied where they are not; none
// where it is no array.
pybind11::array contiguous(pybind11::handle value);
std::vector<std::int64_t> shape_of(const pybind11::array& array);

// An array over memory that `owner`, a Memory, keeps; nobody may write to it.
pybind11::array view(const pybind11::dtype& dtype, const std::vector<std::int64_t>& shape,
                     const void* data, pybind11::handle owner);

// Arrays that rows may be written into, whose owner keeps them; std::invalid_argument for others.
InputBuffers::Set buffers_of(const pybind11::dict& arrays);

// What a run of Python gave, copied; std::invalid_argument where V2 cannot have it.
Outputs outputs_of(const pybind11::dict& arrays, const FactsColumn& facts);
// The rows of an answer, as arrays over the batch's outputs.
pybind11::dict arrays_of(const Answer& answer, const FactsColumn& facts);

}  // namespace lane
