// PythonExecutor: a run with Python's lock, and what it raised as what the lane throws.
#include "python_executor.h"

#include <exception>
#include <string>
#include <utility>

namespace py = pybind11;

namespace lane {

namespace {

std::vector<std::int64_t> shape_of(const RowSpec& spec, std::int64_t rows) {
  std::vector<std::int64_t> shape{rows};
  shape.insert(shape.end(), spec.shape.begin(), spec.shape.end());
  return shape;
}

py::dict inputs_of(const std::shared_ptr<const Batch>& batch) {
  const py::object owner = py::cast(Memory{batch});
  py::dict inputs;
  for (std::size_t i = 0; i < batch->inputs.size(); ++i) {
    const RowSpec& spec = batch->layout->inputs[i];
    inputs[py::str(spec.name)] =
        view(dtype_of(spec.datatype), shape_of(spec, batch->rows), batch->inputs[i].begin(), owner);
  }
  return inputs;
}

// As repr(error) has it, or the type's name where that fails, too.
std::string told(const py::object& error) {
  try {
    return py::repr(error).cast<std::string>();
  } catch (const std::exception&) {
    return Py_TYPE(error.ptr())->tp_name;
  }
}

// With its traceback, which is apart from it until Python 3.12.
PythonFailed failure(const py::error_already_set& raised) {
  if (raised.trace()) PyException_SetTraceback(raised.value().ptr(), raised.trace().ptr());
  return PythonFailed(told(raised.value()), raised.value());
}

}  // namespace

PythonExecutor::PythonExecutor(py::object run, FactsColumn facts, InputBuffers buffers)
    : python_(of_python<References>(References{std::move(run), std::move(facts)})),
      buffers_(std::move(buffers)) {}

std::vector<Bytes> PythonExecutor::buffers(const Layout& layout, std::int64_t rows) {
  return buffers_.lend(layout, rows);
}

Outputs PythonExecutor::run(std::shared_ptr<const Batch> batch) {
  if (python_is_ending()) throw RunFailed("the process is ending");
  const WithPython python;
  try {
    const py::object outputs = call(python_->run, inputs_of(batch));
    return outputs_of(outputs.cast<py::dict>(), python_->facts);
  } catch (const py::error_already_set& raised) {
    throw failure(raised);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    throw failure(py::error_already_set());
  }
}

}  // namespace lane
