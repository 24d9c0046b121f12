// NumPy's arrays over the lane's memory, and copies of what Python gave.
#include "arrays.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>

#include "interpreter.h"

namespace py = pybind11;

namespace lane {

namespace {

struct Kind {
  const char* datatype;
  char kind;  // NumPy's dtype.kind
  py::ssize_t bytes;
  int number;  // NumPy's dtype.num
};

using Numpy = py::detail::npy_api;
constexpr int half = 23;  // NPY_HALF, which pybind11 does not name
constexpr Kind kinds[] = {
    {"FP32", 'f', 4, Numpy::NPY_FLOAT32_}, {"INT64", 'i', 8, Numpy::NPY_INT64_},
    {"UINT8", 'u', 1, Numpy::NPY_UINT8_},  {"FP64", 'f', 8, Numpy::NPY_FLOAT64_},
    {"FP16", 'f', 2, half},                {"BOOL", 'b', 1, Numpy::NPY_BOOL_},
    {"INT8", 'i', 1, Numpy::NPY_INT8_},    {"INT16", 'i', 2, Numpy::NPY_INT16_},
    {"INT32", 'i', 4, Numpy::NPY_INT32_},  {"UINT16", 'u', 2, Numpy::NPY_UINT16_},
    {"UINT32", 'u', 4, Numpy::NPY_UINT32_}, {"UINT64", 'u', 8, Numpy::NPY_UINT64_},
};

// Of facts that are not one for each row, which only Python reads: a model whose rows are its own.
constexpr const char* facts_datatype = "FACTS";

static_assert(sizeof(Fact) == 32, "the records of serving/predictions.py");

std::size_t bytes_of(const py::array& array) { return static_cast<std::size_t>(array.nbytes()); }

const std::byte* data_of(const py::array& array) {
  return static_cast<const std::byte*>(array.data());
}

std::vector<Fact> facts_of(const py::array& array) {
  std::vector<Fact> facts(static_cast<std::size_t>(array.size()));
  if (!facts.empty()) std::memcpy(facts.data(), array.data(), bytes_of(array));
  return facts;
}

Tensor tensor_of(std::string name, std::string datatype, const py::array& array) {
  return {std::move(name), std::move(datatype), shape_of(array),
          {data_of(array), data_of(array) + bytes_of(array)}};
}

void add(Outputs& outputs, std::string name, py::handle value, const FactsColumn& facts) {
  const py::array array = contiguous(value);
  if (!array) throw std::invalid_argument("output '" + name + "' is no array");
  if (name == facts.name) {
    if (static_cast<std::size_t>(array.itemsize()) != sizeof(Fact)) {
      throw std::invalid_argument("the facts of rows have another layout");
    }
    if (array.ndim() == 1) {
      outputs.facts = facts_of(array);
    } else {
      outputs.tensors.push_back(tensor_of(std::move(name), facts_datatype, array));
    }
    return;
  }
  std::string datatype = datatype_of(array.dtype());
  if (datatype.empty()) {
    throw std::invalid_argument("output '" + name + "' has a type that the lane does not carry: " +
                                py::str(array.dtype()).cast<std::string>());
  }
  outputs.tensors.push_back(tensor_of(std::move(name), std::move(datatype), array));
}

}  // namespace

std::string datatype_of(const py::dtype& dtype) {
  if (dtype.byteorder() == '>') return {};
  for (const Kind& kind : kinds) {
    if (dtype.kind() == kind.kind && dtype.itemsize() == kind.bytes) return kind.datatype;
  }
  return {};
}

py::dtype dtype_of(const std::string& datatype) {
  for (const Kind& kind : kinds) {
    if (datatype == kind.datatype) return py::dtype(kind.number);
  }
  throw std::invalid_argument("no array has the datatype " + datatype);
}

py::array contiguous(py::handle value) {
  if (py::isinstance<py::array>(value)) {
    auto array = py::reinterpret_borrow<py::array>(value);
    if (array.flags() & py::array::c_style) return array;
  }
  return py::array::ensure(value, py::array::c_style);
}

std::vector<std::int64_t> shape_of(const py::array& array) {
  return {array.shape(), array.shape() + array.ndim()};
}

py::array view(const py::dtype& dtype, const std::vector<std::int64_t>& shape, const void* data,
               py::handle owner) {
  const std::vector<py::ssize_t> sizes(shape.begin(), shape.end());
  py::array array(dtype, sizes, data, owner);
  py::detail::array_proxy(array.ptr())->flags &= ~Numpy::NPY_ARRAY_WRITEABLE_;
  return array;
}

InputBuffers::Set buffers_of(const py::dict& arrays) {
  InputBuffers::Set set;
  set.rows = std::numeric_limits<std::int64_t>::max();
  for (const auto& [name, value] : arrays) {
    auto array = py::cast<py::array>(value);
    const std::string datatype = datatype_of(array.dtype());
    const bool rows_behind_rows = array.ndim() > 0 && array.flags() & py::array::c_style;
    if (datatype.empty() || !rows_behind_rows) throw std::invalid_argument("no buffer for rows");
    std::vector<std::int64_t> shape = shape_of(array);
    set.rows = std::min(set.rows, shape[0]);
    const std::size_t bytes = bytes_of(array) / std::max<std::size_t>(1, shape[0]);
    shape.erase(shape.begin());
    set.layout.inputs.push_back({py::cast<std::string>(name), datatype, std::move(shape), bytes});
    set.inputs.push_back(static_cast<std::byte*>(array.mutable_data()));  // or it raises
  }
  set.owner = shared_of_python<py::tuple>(arrays.attr("values")());
  return set;
}

Outputs outputs_of(const py::dict& arrays, const FactsColumn& facts) {
  Outputs outputs;
  outputs.tensors.reserve(arrays.size());
  for (const auto& [name, value] : arrays) {
    add(outputs, py::cast<std::string>(name), value, facts);
  }
  return outputs;
}

py::dict arrays_of(const Answer& answer, const FactsColumn& facts) {
  const Outputs& outputs = *answer.outputs;
  const py::object owner = py::cast(Memory{answer.outputs});
  py::dict arrays;
  for (const Tensor& tensor : outputs.tensors) {
    std::vector<std::int64_t> shape = tensor.shape;
    shape[0] = answer.rows;
    const py::dtype dtype =
        tensor.datatype == facts_datatype ? facts.dtype : dtype_of(tensor.datatype);
    const std::byte* first = tensor.data.data() + answer.first * tensor.row_bytes();
    arrays[py::str(tensor.name)] = view(dtype, shape, first, owner);
  }
  if (!outputs.facts.empty()) {
    arrays[py::str(facts.name)] =
        view(facts.dtype, {answer.rows}, outputs.facts.data() + answer.first, owner);
  }
  return arrays;
}

}  // namespace lane
